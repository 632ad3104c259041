/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_error.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include "log.h"

struct row {
    int result;
    const char *name;
    enum mlacat_status status;
    bool lost;
    const char *text;
};

#define FATE_LIVES false
#define FATE_LOST true
#define CUDA_ERROR_ROW(number, name, status, fate, text) {number, #name, MLACAT_##status, FATE_##fate, text},
static const struct row rows[] = {
#include "cuda_error.def"
};

static const struct row other = {0, "a result that is not known", MLACAT_INTERNAL, false, "report it"};

static const struct row *find(int result)
{
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (rows[i].result == result) {
            return &rows[i];
        }
    }
    return &other;
}

enum mlacat_status cuda_error_set(struct error *err, int result, const char *call, const char *format, ...)
{
    const struct row *row = find(result);
    char what[ERROR_MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof(what), format, args);
    va_end(args);
    log_warning("cuda_error", "call=%s result=%d name=%s", call, result, row == &other ? "?" : row->name);
    enum mlacat_scope scope = row->lost ? MLACAT_SCOPE_DEVICE : status_scope(row->status);
    return error_set_scoped(err, row->status, scope, "%s: %s: %s (%d): %s", what, call, row->name, result, row->text);
}

bool cuda_error_is_lost(int result)
{
    return find(result)->lost;
}
