/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread of the library in the program of somebody else.
 *
 * Owns:     nothing.
 * Thread:   any.
 * Lifetime: the caller joins the thread.
 * Errors:   an errno.
 */
#ifndef MLACAT_CLIENT_THREAD_H
#define MLACAT_CLIENT_THREAD_H

#include <pthread.h>

/* Starts run(user) with the program's signals blocked, which are for its own threads. 0, or an errno. */
int thread_start(pthread_t *thread, void *(*run)(void *user), void *user);

#endif
