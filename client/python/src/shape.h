/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Three arguments as one call: checks of shapes and types with the names of the caller's arguments, and leading
 * dimensions joined into the two that a call has. A stream-ordered call that the daemon refuses fails its stream, so
 * what can be seen here is refused here.
 *
 * Owns:     nothing.
 * Thread:   with the GIL.
 * Lifetime: -
 * Errors:   -1 with a Python exception set.
 */
#ifndef MLACAT_PYTHON_SHAPE_H
#define MLACAT_PYTHON_SHAPE_H

#include "view.h"

#define OPERANDS 3

/* The functions of the package; numbers of Client._run. */
struct shape_rule {
    enum mlacat_op op;
    bool broadcast; /* the second input has one row for all of the last leading dimension */
    const char *names[OPERANDS];
};
extern const struct shape_rule shape_rules[];
extern const unsigned shape_rules_nr;

/* The bytes that an operand touches. */
struct extent {
    uintptr_t begin;
    uintptr_t end;
};

/* Output, first input, second input. Fills all of `call` but the buffers and their offsets. */
int shape_call(const struct shape_rule *rule, struct view views[OPERANDS], struct mlacat_call *call);
bool shape_is_empty(const struct mlacat_call *call);
/* Of a call that is not empty. */
int shape_extent(const struct shape_rule *rule, int operand, const struct view *view, const struct mlacat_call *call,
                 struct extent *extent);

/* Whether it has more than one row to give to two calls. */
bool shape_can_halve(const struct mlacat_call *call);
/*
 * Cuts a call where `operand` reaches furthest. Both calls, and the addresses of `views`, are those of the whole at
 * first; `views` are those of the second call then.
 */
void shape_halve(int operand, struct mlacat_call *first, struct mlacat_call *second, struct view views[OPERANDS]);

#endif
