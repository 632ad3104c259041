/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System calls of a submit, counted as strace does: by tracing the client. While the daemon's worker is awake
 * (`poll = spin`) there are none, at any pace. One before which the worker had lost its CPU to somebody costs a look
 * whether the daemon is there: where that is most of them, for a worker that has to wait for a CPU, nothing is judged.
 */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "library.h"
#include "proc.h"

#define SUBMITS 200
#define TRIES 5         /* on a machine that is busy with other things */
#define BUSY_PERCENT 50 /* of the time: a worker that waits so long for a CPU has none of its own */
#define WORKER "mlacat-worker"
#define GAP_NS 1000000 /* longer than a client takes a daemon's word for */

/* What the client asks itself between its submits, so that these are told from what it does otherwise. */
enum mark { MARK_SUBMIT = SYS_getppid, MARK_SUBMITTED = SYS_getpgid };

/* ---------------------------------------------------------------------------------------------------- the client */

static void pass_time(int64_t ns)
{
    struct timespec begin;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do { /* a sleep would be a system call, and let the CPU go to sleep too */
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - begin.tv_sec) * 1000000000 + now.tv_nsec - begin.tv_nsec < ns);
}

_Noreturn static void be_client(const struct server *server, int64_t gap_ns)
{
    struct library library;
    uint64_t id;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    library_open(&library, server, &small_shape);
    struct mlacat_call call = library_call(&library.trial, library.buffer);
    REQUIRE(mlacat_stream_transport(library.stream) == MLACAT_TRANSPORT_RING);
    MUST(mlacat_run(library.stream, &call, NULL));
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) {
        _exit(77);
    }
    raise(SIGSTOP);
    for (int i = 0; i < SUBMITS; i++) {
        pass_time(gap_ns);
        syscall(MARK_SUBMIT);
        enum mlacat_status status = mlacat_submit(library.stream, &call, &id);
        syscall(MARK_SUBMITTED, 0);
        MUST(status);
        MUST(mlacat_wait(library.stream, id, -1, NULL));
    }
    library_close(&library);
    _exit(0);
}

/* ---------------------------------------------------------------------------------------------------- the tracer */

/* Lets the client run to its next stop; false: it has ended well. */
static bool step(pid_t client, int signal_nr, int *status)
{
    REQUIRE(ptrace(PTRACE_SYSCALL, client, NULL, signal_nr) == 0);
    REQUIRE(waitpid(client, status, __WALL) == client);
    REQUIRE(WIFSTOPPED(*status) || (WIFEXITED(*status) && WEXITSTATUS(*status) == 0), "the client ended with 0x%x",
            *status);
    return WIFSTOPPED(*status);
}

/* Submits that made system calls. */
static unsigned count(pid_t client)
{
    bool inside = false;
    bool noisy = false;
    unsigned nr = 0;
    int status = 0;
    int signal_nr = 0;
    while (step(client, signal_nr, &status)) {
        struct __ptrace_syscall_info info;
        bool traced = WSTOPSIG(status) == (SIGTRAP | 0x80);
        signal_nr = traced ? 0 : WSTOPSIG(status);
        if (!traced || ptrace(PTRACE_GET_SYSCALL_INFO, client, sizeof(info), &info) <= 0 ||
            info.op != PTRACE_SYSCALL_INFO_ENTRY) {
            continue;
        }
        if (info.entry.nr == MARK_SUBMIT) {
            inside = true;
            noisy = false;
        } else if (info.entry.nr == MARK_SUBMITTED) {
            inside = false;
            nr += noisy;
        } else if (inside && info.entry.nr != SYS_clock_gettime) { /* the machine's clock may need that */
            noisy = true;
        }
    }
    return nr;
}

/* 77: nobody may trace here. */
static int measure(const struct server *server, int64_t gap_ns, unsigned *nr, uint64_t *waited_percent)
{
    int status;
    uint64_t begin_ms = now_ms();
    uint64_t waited_ns = proc_waited_ns(server->pid, WORKER);
    fflush(NULL);
    pid_t client = fork();
    REQUIRE(client >= 0);
    if (client == 0) {
        be_client(server, gap_ns);
    }
    REQUIRE(waitpid(client, &status, __WALL) == client);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
        return 77;
    }
    REQUIRE(WIFSTOPPED(status), "0x%x", status);
    REQUIRE(ptrace(PTRACE_SETOPTIONS, client, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL) == 0);
    *nr = count(client);
    *waited_percent = (proc_waited_ns(server->pid, WORKER) - waited_ns) / 10000 / (now_ms() - begin_ms + 1);
    printf("%ld ns apart: %u of %d submits made a system call; the worker waited for a CPU %lu %% of the time\n",
           (long)gap_ns, *nr, SUBMITS, (unsigned long)*waited_percent);
    return 0;
}

static int skip(struct server *server, const char *why)
{
    server_stop(server);
    printf("SKIPPED: %s\n", why);
    return 77;
}

int main(void)
{
    static const int64_t gaps_ns[] = {5000, GAP_NS};
    struct server server;
    alarm(300); /* ends a test that waits in vain */
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof(cpus), &cpus) != 0 || CPU_COUNT(&cpus) < 2) {
        printf("SKIPPED: the worker and the client need a CPU each\n");
        return 77;
    }
    server_prepare(&server);
    server_configure(&server, "poll = spin\n");
    server_launch(&server);
    server_wait_ready(&server);
    for (size_t i = 0; i < sizeof(gaps_ns) / sizeof(gaps_ns[0]); i++) {
        unsigned nr = SUBMITS;
        uint64_t waited_percent = 0;
        uint64_t least_percent = UINT64_MAX;
        for (int try = 0; try < TRIES && nr >= SUBMITS / 2; try++) {
            if (measure(&server, gaps_ns[i], &nr, &waited_percent) == 77) {
                return skip(&server, "nobody may trace a process here (PTRACE_TRACEME)");
            }
            least_percent = waited_percent < least_percent ? waited_percent : least_percent;
        }
        if (nr >= SUBMITS / 2 && least_percent >= BUSY_PERCENT) {
            return skip(&server, "others keep the worker from its CPU");
        }
        REQUIRE(nr < SUBMITS / 2, "%u of %d submits, %ld ns apart, made a system call", nr, SUBMITS, (long)gaps_ns[i]);
    }
    server_stop(&server);
    return 0;
}
