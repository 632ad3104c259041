/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting a thread of the service: named, with every signal blocked that the loop handles.
 *
 * Owns:     nothing.
 * Thread:   any.
 * Lifetime: the caller joins.
 * Errors:   RESOURCE_EXHAUSTED: the system gives no more threads.
 */
#ifndef MLACAT_ENGINE_THREAD_H
#define MLACAT_ENGINE_THREAD_H

#include <pthread.h>

#include "status.h"

enum mlacat_status thread_start(pthread_t *thread, const char *name, void *(*main)(void *), void *arg,
                                struct error *err);

#endif
