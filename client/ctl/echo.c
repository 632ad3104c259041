/* SPDX-License-Identifier: Apache-2.0 */
#include "echo.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* The first CPUs that this process may use; returns how many there are of the two. */
static int first_cpus(int cpus[2])
{
    cpu_set_t allowed;
    int nr = 0;

    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
        return 0;
    for (size_t cpu = 0; cpu < CPU_SETSIZE && nr < 2; cpu++)
        if (CPU_ISSET(cpu, &allowed))
            cpus[nr++] = (int)cpu;
    return nr;
}

static bool pin(int cpu)
{
    cpu_set_t one;

    CPU_ZERO(&one);
    CPU_SET((size_t)cpu, &one);
    return sched_setaffinity(0, sizeof(one), &one) == 0;
}

/* The child keeps nothing of the parent's but its end of the pair: no socket of the service, no output pipe. */
static _Noreturn void answer_for_ever(int fd, int cpu)
{
    char packet[ECHO_REQUEST_BYTES] = {0};

    if (!pin(cpu) || dup2(fd, 0) != 0 || close_range(1, ~0u, 0) != 0)
        _exit(1);
    while (recv(0, packet, sizeof(packet), 0) > 0)
        if (send(0, packet, ECHO_ANSWER_BYTES, MSG_NOSIGNAL) != ECHO_ANSWER_BYTES)
            break;
    _exit(0);
}

bool echo_possible(enum echo_place place)
{
    int cpus[2];

    return first_cpus(cpus) > (place == ECHO_TWO_CPUS);
}

bool echo_start(struct echo *echo, enum echo_place place)
{
    int cpus[2] = {0};
    int pair[2];

    if (first_cpus(cpus) == 0)
        return false;
    echo->cpu = cpus[0];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return false;
    echo->pid = fork();
    if (echo->pid == 0)
        answer_for_ever(pair[1], cpus[place == ECHO_TWO_CPUS]);
    close(pair[1]);
    echo->fd = pair[0];
    if (echo->pid > 0)
        return true;
    close(pair[0]);
    echo->pid = 0;
    return false;
}

void echo_stop(struct echo *echo)
{
    if (echo->pid == 0)
        return;
    close(echo->fd);
    while (waitpid(echo->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    *echo = (struct echo){0};
}

bool echo_enter(const struct echo *echo, cpu_set_t *before)
{
    return sched_getaffinity(0, sizeof(*before), before) == 0 && pin(echo->cpu);
}

bool echo_leave(const cpu_set_t *before)
{
    return sched_setaffinity(0, sizeof(*before), before) == 0;
}

bool echo_send(const struct echo *echo)
{
    static const char packet[ECHO_REQUEST_BYTES];

    return send(echo->fd, packet, sizeof(packet), MSG_NOSIGNAL) == sizeof(packet);
}

bool echo_receive(const struct echo *echo)
{
    char packet[ECHO_REQUEST_BYTES];

    return recv(echo->fd, packet, sizeof(packet), 0) == ECHO_ANSWER_BYTES;
}
