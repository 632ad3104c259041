/* SPDX-License-Identifier: Apache-2.0 */
#include "thread.h"

#include <signal.h>
#include <string.h>

enum mlacat_status thread_start(pthread_t *thread, const char *name, void *(*main)(void *), void *arg,
                                struct error *err)
{
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    /* Faults are delivered to the thread that makes them: the host device guards its copies against SIGBUS. */
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(thread, NULL, main, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "cannot start the thread %s: %s; raise TasksMax or LimitNPROC",
                         name, strerror(failed));
    }
    pthread_setname_np(*thread, name);
    return MLACAT_OK;
}
