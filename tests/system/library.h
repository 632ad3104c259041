/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of libmlacat with one stream and one trial, for the tests that go through the library.
 *
 * Owns:     the client, its stream, its buffer and the trial.
 * Thread:   what mlacat.h says.
 * Lifetime: library_open -> library_close.
 * Errors:   a failed check (require.h) that shows what the library said.
 */
#ifndef MLACAT_TESTS_LIBRARY_H
#define MLACAT_TESTS_LIBRARY_H

#include <mlacat/mlacat.h>

#include "gpu_memory.h"
#include "require.h"
#include "server.h"
#include "trial.h"

#define MUST(call)                                                                                           \
    do {                                                                                                     \
        enum mlacat_status must_ = (call);                                                                   \
        REQUIRE(must_ == MLACAT_OK, "%s: %s: %s", #call, mlacat_status_name(must_), mlacat_error_message()); \
    } while (0)

struct library {
    struct mlacat_client *client;
    struct mlacat_stream *stream;
    struct mlacat_buffer *buffer;
    struct trial trial;
};

/* With reconnect_timeout_ms 0 it waits for a daemon as long as any test does. */
static inline struct mlacat_client *library_connect(const struct server *server, uint32_t reconnect_timeout_ms)
{
    struct mlacat_client *client = NULL;
    struct mlacat_connect_options options = {.size = sizeof(options),
                                             .socket = server->socket,
                                             .name = "library test",
                                             .connect_timeout_ms = WAIT_MS,
                                             .reconnect_timeout_ms =
                                                 reconnect_timeout_ms != 0 ? reconnect_timeout_ms : WAIT_MS};
    MUST(mlacat_connect(&options, &client));
    return client;
}

/* The trial's memory, of whichever device is under test (for a GPU after gpu_memory_own). */
static inline struct mlacat_buffer *library_register(struct mlacat_client *client, const struct trial *trial)
{
    struct mlacat_buffer *buffer = NULL;
    const struct share *share = gpu_memory_find(trial->fd);
    if (share) {
        MUST(mlacat_buffer_register_ptr(client, (void *)(uintptr_t)share->address, trial->bytes, &buffer));
    } else {
        MUST(mlacat_buffer_register_fd(client, NULL, trial->fd, trial->bytes, &buffer));
    }
    return buffer;
}

static inline void library_open(struct library *library, const struct server *server, const struct trial_shape *shape)
{
    library->client = library_connect(server, 0);
    trial_make(&library->trial, shape);
    library->buffer = library_register(library->client, &library->trial);
    MUST(mlacat_stream_open(library->client, NULL, &library->stream));
}

static inline void library_close(struct library *library)
{
    mlacat_stream_close(library->stream);
    mlacat_buffer_release(library->buffer);
    mlacat_disconnect(library->client);
    trial_free(&library->trial);
}

/* The call of a trial on the buffer that its memory is registered as. */
static inline struct mlacat_call library_call(const struct trial *trial, struct mlacat_buffer *buffer)
{
    struct mlacat_call call = {
        .size = sizeof(call), .op = (enum mlacat_op)trial->op, .dtype = (enum mlacat_dtype)trial->dtype};
    for (int i = 0; i < 3; i++) {
        call.operand[i].buffer = buffer;
        call.operand[i].offset_bytes = trial->operand[i].offset_bytes;
        for (int d = 0; d < 3; d++) {
            call.operand[i].shape[d] = trial->operand[i].shape[d];
            call.operand[i].strides[d] = trial->operand[i].strides[d];
        }
    }
    return call;
}

/* Fills the trial anew and runs its call; if it returns MLACAT_OK every byte is right. */
static inline enum mlacat_status library_run(struct library *library, uint32_t seed)
{
    trial_refill(&library->trial, seed);
    struct mlacat_call call = library_call(&library->trial, library->buffer);
    enum mlacat_status status = mlacat_run(library->stream, &call, NULL);
    REQUIRE(status != MLACAT_OK || trial_right(&library->trial), "wrong bytes of seed %u", seed);
    return status;
}

#endif
