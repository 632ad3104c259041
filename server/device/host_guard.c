/* SPDX-License-Identifier: Apache-2.0 */
#include "host_guard.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <ucontext.h>

#include "concat_mla_host.h"
#include "log.h"

/* Of the copy that this thread is in. Written before `armed` and read by the handler of the same thread only. */
struct guard {
    sigjmp_buf back;
    sigset_t mask; /* that the handler took over */
    volatile uintptr_t fault;
    volatile sig_atomic_t armed;
};

/* initial-exec: no allocation on first use, which may be in the handler. */
static _Thread_local struct guard guard __attribute__((tls_model("initial-exec")));

static void on_sigbus(int signal_number, siginfo_t *info, void *context)
{
    const ucontext_t *interrupted = context;
    /* si_code <= 0: sent by a process, not by a page. */
    if (guard.armed && info->si_code > 0) {
        guard.armed = 0;
        guard.fault = (uintptr_t)info->si_addr;
        guard.mask = interrupted->uc_sigmask;
        siglongjmp(guard.back, 1);
    }
    signal(signal_number, SIG_DFL);
    raise(signal_number); /* blocked until the handler returns: then the process dies of it */
}

enum mlacat_status host_guard_install(struct error *err)
{
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGBUS, &action, NULL) != 0) {
        log_error("host_guard", "call=sigaction errno=%d", errno);
        return error_set(err, MLACAT_INTERNAL, "the host device cannot guard itself against SIGBUS: sigaction failed");
    }
    return MLACAT_OK;
}

bool host_guard_copy(const struct concat_mla_args *args, uint64_t begin, uint64_t end, bool streaming, uintptr_t *fault)
{
    /* The mask is not saved here, which would be a system call each time, but by the handler. */
    if (sigsetjmp(guard.back, 0) != 0) {
        pthread_sigmask(SIG_SETMASK, &guard.mask, NULL);
        *fault = guard.fault;
        return false;
    }
    guard.armed = 1;
    concat_mla_host(args, begin, end, streaming);
    guard.armed = 0;
    return true;
}
