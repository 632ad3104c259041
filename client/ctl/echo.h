/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     a child process that answers each packet of a SOCK_SEQPACKET pair with another: what two processes pay at
 *           the least for a message and its answer. Where the two run decides much of it: on one CPU a wake-up is a
 *           context switch, on two it may be an interrupt of a virtual machine; so each echo has its place.
 * Thread:   one.
 * Lifetime: echo_start .. echo_stop; the child ends with the parent's end of the pair.
 * Errors:   false, errno set.
 */
#ifndef MLACAT_CTL_ECHO_H
#define MLACAT_CTL_ECHO_H

#include <sched.h>
#include <stdbool.h>
#include <sys/types.h>

/* About what the smallest Submit and its Completion need. */
#define ECHO_REQUEST_BYTES 128
#define ECHO_ANSWER_BYTES 48

enum echo_place { ECHO_ONE_CPU, ECHO_TWO_CPUS, ECHO_PLACES };

struct echo {
    pid_t pid; /* 0: not started */
    int fd;
    int cpu; /* the parent's, between echo_enter and echo_leave */
};

/* Whether this process may use CPUs enough for the place. */
bool echo_possible(enum echo_place place);
bool echo_start(struct echo *echo, enum echo_place place);
void echo_stop(struct echo *echo);

/* Moves the calling thread to its place and back to `before`, where it came from. The child is always at its own. */
bool echo_enter(const struct echo *echo, cpu_set_t *before);
bool echo_leave(const cpu_set_t *before);

/* One packet there; one packet back. Both block. */
bool echo_send(const struct echo *echo);
bool echo_receive(const struct echo *echo);

#endif
