/* SPDX-License-Identifier: Apache-2.0 */
#include "exporter.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define UUID_BYTES 64

struct request {
    char uuid[UUID_BYTES];
    uint64_t bytes;
    uint32_t nr;
};

struct answer {
    bool good;
    char error[GPU_ERROR_BYTES];
    struct gpu_handle handles[EXPORTER_HANDLES_MAX];
};

/* What the child has. */
struct owned {
    struct gpu gpu;
    gpu_address address[EXPORTER_HANDLES_MAX];
};

static bool make(struct owned *owned, const struct request *request, struct answer *answer)
{
    if (!owned->gpu.context && !gpu_open(&owned->gpu, request->uuid))
        return false;
    for (unsigned i = 0; i < EXPORTER_HANDLES_MAX; i++) {
        gpu_free(&owned->gpu, owned->address[i]);
        owned->address[i] = 0;
    }
    for (unsigned i = 0; i < request->nr; i++)
        if (!gpu_alloc(&owned->gpu, request->bytes, &owned->address[i]) ||
            !gpu_export(&owned->gpu, owned->address[i], &answer->handles[i]))
            return false;
    return true;
}

/* The child keeps nothing of the parent's but its end of the pair: no socket of the service, no output pipe. What the
 * driver opens must not become its output. */
static _Noreturn void serve(int fd)
{
    int nowhere = open("/dev/null", O_RDWR);
    struct owned owned = {0};
    struct request request;
    struct answer answer;

    if (dup2(fd, 0) != 0 || dup2(nowhere, 1) != 1 || dup2(nowhere, 2) != 2 || close_range(3, ~0u, 0) != 0)
        _exit(1);
    while (recv(0, &request, sizeof(request), 0) == (ssize_t)sizeof(request)) {
        memset(&answer, 0, sizeof(answer));
        answer.good = make(&owned, &request, &answer);
        memcpy(answer.error, owned.gpu.error, sizeof(answer.error));
        if (send(0, &answer, sizeof(answer), MSG_NOSIGNAL) != (ssize_t)sizeof(answer))
            break;
    }
    _exit(0);
}

bool exporter_start(struct exporter *exporter)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return false;
    exporter->pid = fork();
    if (exporter->pid == 0)
        serve(pair[1]);
    close(pair[1]);
    exporter->fd = pair[0];
    if (exporter->pid > 0)
        return true;
    close(pair[0]);
    exporter->pid = 0;
    return false;
}

void exporter_stop(struct exporter *exporter)
{
    if (exporter->pid == 0)
        return;
    close(exporter->fd);
    while (waitpid(exporter->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    *exporter = (struct exporter){0};
}

bool exporter_ask(const struct exporter *exporter, const char *uuid, size_t bytes, unsigned nr,
                  struct gpu_handle handles[EXPORTER_HANDLES_MAX], char error[GPU_ERROR_BYTES])
{
    struct request request = {.bytes = bytes, .nr = nr < EXPORTER_HANDLES_MAX ? nr : EXPORTER_HANDLES_MAX};
    struct answer answer;

    snprintf(request.uuid, sizeof(request.uuid), "%s", uuid);
    if (send(exporter->fd, &request, sizeof(request), MSG_NOSIGNAL) != (ssize_t)sizeof(request) ||
        recv(exporter->fd, &answer, sizeof(answer), 0) != (ssize_t)sizeof(answer)) {
        snprintf(error, GPU_ERROR_BYTES, "the process that exports memory has ended");
        return false;
    }
    memcpy(handles, answer.handles, sizeof(answer.handles));
    memcpy(error, answer.error, GPU_ERROR_BYTES);
    return answer.good;
}
