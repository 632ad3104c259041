/* SPDX-License-Identifier: Apache-2.0 */
#include "jit_compile.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "cuda_jit.h"

#define HELPER_PROGRAM "/proc/self/exe" /* the running binary, also after an upgrade replaced its file */
#define FIRST_OTHER_FD 3

/* ---- the process ---- */

static int describe_spawn(posix_spawn_file_actions_t *actions, posix_spawnattr_t *attributes, int fd)
{
    sigset_t none;
    sigset_t all;
    sigemptyset(&none);
    sigfillset(&all);
    int error = posix_spawn_file_actions_adddup2(actions, fd, STDIN_FILENO);
    if (error == 0) {
        error = posix_spawn_file_actions_adddup2(actions, fd, STDOUT_FILENO);
    }
    if (error == 0) { /* a driver's descriptor in the helper would keep the daemon's context alive after its death */
        error = posix_spawn_file_actions_addclosefrom_np(actions, FIRST_OTHER_FD);
    }
    if (error == 0) {
        error = posix_spawnattr_setsigmask(attributes, &none);
    }
    if (error == 0) {
        error = posix_spawnattr_setsigdefault(attributes, &all);
    }
    if (error == 0) {
        error = posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    }
    return error;
}

/* Returns 0 or an errno. */
static int spawn(pid_t *helper, int fd, const char *nvrtc)
{
    char program[] = "mlacatd";
    char argument[] = JIT_HELPER_ARGUMENT;
    char *path = nvrtc ? strdup(nvrtc) : NULL;
    char *const argv[] = {program, argument, path, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    if (nvrtc && !path) {
        return ENOMEM;
    }
    int error = posix_spawn_file_actions_init(&actions);
    if (error == 0) {
        error = posix_spawnattr_init(&attributes);
        if (error == 0) {
            error = describe_spawn(&actions, &attributes, fd);
            if (error == 0) {
                error = posix_spawn(helper, HELPER_PROGRAM, &actions, &attributes, argv, environ);
            }
            posix_spawnattr_destroy(&attributes);
        }
        posix_spawn_file_actions_destroy(&actions);
    }
    free(path);
    return error;
}

/* The wait status. The signal changes nothing for one that has ended by itself. */
static int end_helper(struct jit_compiler *compiler)
{
    int status = 0;
    kill(compiler->helper, SIGKILL);
    while (waitpid(compiler->helper, &status, 0) < 0 && errno == EINTR) {
    }
    compiler->helper = 0;
    return status;
}

/* The helper has closed its end without an answer: says how it ended. */
static enum mlacat_status explain_end(struct jit_compiler *compiler, struct error *err)
{
    int status = end_helper(compiler);
    if (WIFSIGNALED(status)) {
        return error_set(err, MLACAT_INTERNAL, "the compile helper was ended by signal %d (%s)", WTERMSIG(status),
                         strsignal(WTERMSIG(status)));
    }
    return error_set(err, MLACAT_INTERNAL, "the compile helper ended without an answer, exit code %d",
                     WEXITSTATUS(status));
}

/* ---- packets ---- */

/* Waits until the socket is ready for `events`. */
static enum mlacat_status wait_ready(struct jit_compiler *compiler, short events, struct error *err)
{
    for (;;) {
        uint64_t now = clock_now_ns();
        struct pollfd poll_fd = {.fd = compiler->fd, .events = events};
        int left_ms = now < compiler->deadline_ns ? (int)((compiler->deadline_ns - now) / 1000000) + 1 : 0;
        int ready = left_ms > 0 ? poll(&poll_fd, 1, left_ms) : 0;
        if (ready > 0) {
            return MLACAT_OK;
        }
        if (ready == 0 && left_ms == 0) {
            return error_set(err, MLACAT_DEADLINE_EXCEEDED, "the compile helper took longer than %u ms",
                             compiler->limit_ms);
        }
        if (ready < 0 && errno != EINTR) {
            return error_set(err, MLACAT_INTERNAL, "cannot wait for the compile helper: %s", strerror(errno));
        }
    }
}

static enum mlacat_status send_all(struct jit_compiler *compiler, const void *bytes, size_t bytes_nr, struct error *err)
{
    const char *from = bytes;
    while (bytes_nr > 0) {
        if (wait_ready(compiler, POLLOUT, err) != MLACAT_OK) {
            return err->code;
        }
        ssize_t sent = send(compiler->fd, from, bytes_nr, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR || errno == EAGAIN) {
                continue;
            }
            return explain_end(compiler, err);
        }
        from += sent;
        bytes_nr -= (size_t)sent;
    }
    return MLACAT_OK;
}

static enum mlacat_status receive_all(struct jit_compiler *compiler, void *bytes, size_t bytes_nr, struct error *err)
{
    char *to = bytes;
    while (bytes_nr > 0) {
        if (wait_ready(compiler, POLLIN, err) != MLACAT_OK) {
            return err->code;
        }
        ssize_t got = recv(compiler->fd, to, bytes_nr, MSG_DONTWAIT);
        if (got < 0 && (errno == EINTR || errno == EAGAIN)) {
            continue;
        }
        if (got <= 0) {
            return explain_end(compiler, err);
        }
        to += got;
        bytes_nr -= (size_t)got;
    }
    return MLACAT_OK;
}

/* Takes a FAILED's payload. Returns its code, never OK. */
static enum mlacat_status receive_failure(struct jit_compiler *compiler, struct error *err)
{
    struct error told;
    if (receive_all(compiler, &told, sizeof(told), err) != MLACAT_OK) {
        return err->code;
    }
    told.message[sizeof(told.message) - 1] = '\0';
    *err = told;
    return err->code != MLACAT_OK ? err->code : error_set(err, MLACAT_INTERNAL, "the compile helper failed with OK");
}

/* OK: a packet with good magic, of any kind but FAILED. */
static enum mlacat_status receive_packet(struct jit_compiler *compiler, struct jit_packet *packet, struct error *err)
{
    if (receive_all(compiler, packet, sizeof(*packet), err) != MLACAT_OK) {
        return err->code;
    }
    if (packet->magic == JIT_PACKET_MAGIC && packet->kind == JIT_FAILED && packet->bytes_nr == sizeof(struct error)) {
        return receive_failure(compiler, err);
    }
    if (packet->magic != JIT_PACKET_MAGIC || packet->kind == JIT_FAILED) {
        return error_set(err, MLACAT_INTERNAL,
                         "the compile helper answered something else: is standard output "
                         "written to before main?");
    }
    return MLACAT_OK;
}

static enum mlacat_status greet(struct jit_compiler *compiler, struct error *err)
{
    struct jit_packet packet;
    struct jit_greeting greeting;
    if (receive_packet(compiler, &packet, err) != MLACAT_OK) {
        return err->code;
    }
    if (packet.kind != JIT_GREETING || packet.bytes_nr != sizeof(greeting)) {
        return error_set(err, MLACAT_INTERNAL, "the compile helper began with packet kind %u", packet.kind);
    }
    if (receive_all(compiler, &greeting, sizeof(greeting), err) != MLACAT_OK) {
        return err->code;
    }
    compiler->nvrtc_version = greeting.nvrtc_version;
    compiler->archs_nr = greeting.archs_nr < JIT_ARCHS_MAX ? greeting.archs_nr : JIT_ARCHS_MAX;
    memcpy(compiler->archs, greeting.archs, sizeof(compiler->archs));
    return MLACAT_OK;
}

enum mlacat_status jit_compiler_start(struct jit_compiler *compiler, const char *nvrtc, uint32_t limit_ms,
                                      struct error *err)
{
    int fds[2];
    memset(compiler, 0, sizeof(*compiler));
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "no socket for the compile helper: %s", strerror(errno));
    }
    int error = spawn(&compiler->helper, fds[1], nvrtc);
    close(fds[1]);
    if (error != 0) {
        close(fds[0]);
        compiler->helper = 0;
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "cannot start the compile helper: %s", strerror(error));
    }
    compiler->fd = fds[0];
    compiler->limit_ms = limit_ms;
    compiler->deadline_ns = clock_now_ns() + (uint64_t)limit_ms * 1000000;
    if (greet(compiler, err) != MLACAT_OK) {
        jit_compiler_stop(compiler);
        return err->code;
    }
    return MLACAT_OK;
}

static enum mlacat_status send_request(struct jit_compiler *compiler, const struct jit_text *text, struct error *err)
{
    const char *strings[4 + JIT_OPTIONS_MAX] = {text->source_name, text->source, text->header_name, text->header};
    uint32_t strings_nr = 4;
    struct jit_packet packet = {.magic = JIT_PACKET_MAGIC, .kind = JIT_REQUEST};
    for (uint32_t i = 0; i < text->options_nr; i++) {
        strings[strings_nr++] = text->options[i];
    }
    for (uint32_t i = 0; i < strings_nr; i++) {
        packet.bytes_nr += strlen(strings[i]) + 1;
    }
    if (send_all(compiler, &packet, sizeof(packet), err) != MLACAT_OK) {
        return err->code;
    }
    for (uint32_t i = 0; i < strings_nr; i++) {
        if (send_all(compiler, strings[i], strlen(strings[i]) + 1, err) != MLACAT_OK) {
            return err->code;
        }
    }
    return MLACAT_OK;
}

enum mlacat_status jit_compiler_run(struct jit_compiler *compiler, const struct jit_text *text,
                                    struct jit_compiled *image, struct error *err)
{
    struct jit_packet packet;
    memset(image, 0, sizeof(*image));
    if (send_request(compiler, text, err) != MLACAT_OK || receive_packet(compiler, &packet, err) != MLACAT_OK) {
        return err->code;
    }
    if ((packet.kind != JIT_IMAGE_CUBIN && packet.kind != JIT_IMAGE_PTX) || packet.bytes_nr == 0 ||
        packet.bytes_nr > JIT_IMAGE_MAX) {
        return error_set(err, MLACAT_INTERNAL, "the compile helper answered packet kind %u with %llu bytes",
                         packet.kind, (unsigned long long)packet.bytes_nr);
    }
    void *bytes = malloc(packet.bytes_nr);
    if (!bytes) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "no memory for a kernel image of %llu bytes",
                         (unsigned long long)packet.bytes_nr);
    }
    if (receive_all(compiler, bytes, packet.bytes_nr, err) != MLACAT_OK) {
        free(bytes);
        return err->code;
    }
    *image = (struct jit_compiled){.bytes = bytes, .bytes_nr = packet.bytes_nr, .ptx = packet.kind == JIT_IMAGE_PTX};
    return MLACAT_OK;
}

void jit_compiler_stop(struct jit_compiler *compiler)
{
    if (compiler->helper > 0) {
        end_helper(compiler); /* it has nothing left to do, or its time is over */
    }
    if (compiler->deadline_ns != 0) {
        close(compiler->fd);
        compiler->deadline_ns = 0;
    }
}
