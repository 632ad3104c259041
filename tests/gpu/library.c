/* SPDX-License-Identifier: Apache-2.0 */
#include "library.h"

#include <stdio.h>

#include "mlacat/mlacat.h"
#include "require.h"

#define MUST(call) REQUIRE((call) == MLACAT_OK, "%s", mlacat_error_message())

static struct mlacat_client *connect_to(const char *socket)
{
    struct mlacat_connect_options options = {
        .size = sizeof(options), .socket = socket, .name = "gpu_service", .connect_timeout_ms = WAIT_MS};
    struct mlacat_client *client;
    MUST(mlacat_connect(&options, &client));
    return client;
}

void library_run_k(const char *socket, uint64_t out, uint64_t nope, uint64_t rope, uint64_t n, uint64_t h, uint64_t p,
                   uint64_t r)
{
    struct mlacat_client *client = connect_to(socket);
    uint64_t address[3] = {out, nope, rope};
    uint64_t shape[3][3] = {{n, h, p + r}, {n, h, p}, {n, 1, r}};
    struct mlacat_call call = {.size = sizeof(call), .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16};
    struct mlacat_buffer *buffer[3];
    struct mlacat_stream *stream;
    struct mlacat_device_info info = {.size = sizeof(info)};
    for (int k = 0; k < 3; k++) {
        size_t bytes = shape[k][0] * shape[k][1] * shape[k][2] * 2;
        MUST(mlacat_buffer_register_ptr(client, (void *)(uintptr_t)address[k], bytes, &buffer[k]));
        call.operand[k] = mlacat_tensor_contiguous(buffer[k], 0, shape[k][0], shape[k][1], shape[k][2]);
    }
    MUST(mlacat_device_info(client, 0, &info));
    MUST(mlacat_stream_open(client, info.uuid, &stream));
    MUST(mlacat_run(stream, &call, NULL));
    for (int k = 0; k < 3; k++) {
        mlacat_buffer_release(buffer[k]);
    }
    mlacat_disconnect(client);
}

void library_stale(const char *socket, uint64_t address, size_t size, void (*change)(void))
{
    struct mlacat_client *client = connect_to(socket);
    struct mlacat_call call = {.size = sizeof(call), .op = MLACAT_OP_CONCAT_MLA_ABSORB_Q, .dtype = MLACAT_DTYPE_BF16};
    struct mlacat_device_info info = {.size = sizeof(info)};
    struct mlacat_buffer *buffer;
    struct mlacat_stream *stream;
    MUST(mlacat_buffer_register_ptr(client, (void *)(uintptr_t)address, size, &buffer));
    MUST(mlacat_device_info(client, 0, &info));
    MUST(mlacat_stream_open(client, info.uuid, &stream));
    call.operand[0] = mlacat_tensor_contiguous(buffer, 0, 4, 4, 64);
    call.operand[1] = mlacat_tensor_contiguous(buffer, 4096, 4, 4, 32);
    call.operand[2] = mlacat_tensor_contiguous(buffer, 8192, 4, 4, 32);
    MUST(mlacat_run(stream, &call, NULL));
    change();
    REQUIRE(mlacat_run(stream, &call, NULL) == MLACAT_FAILED_PRECONDITION);
    REQUIRE(mlacat_error_scope() == MLACAT_SCOPE_BUFFER);
    printf("  refused: %s\n", mlacat_error_message());
    mlacat_buffer_release(buffer);
    mlacat_disconnect(client);
}

static uint32_t buffers_of_daemon(struct mlacat_client *client)
{
    struct mlacat_stats *stats;
    MUST(mlacat_stats(client, &stats));
    uint32_t buffers = stats->buffers;
    mlacat_stats_free(stats);
    return buffers;
}

uint64_t library_watched(const char *socket, uint64_t address, size_t size, void (*change)(void))
{
    struct mlacat_client *client = connect_to(socket);
    struct mlacat_client *observer = connect_to(socket);
    struct mlacat_buffer *buffer;
    MUST(mlacat_buffer_register_ptr(client, (void *)(uintptr_t)address, size, &buffer));
    uint32_t before = buffers_of_daemon(observer);
    change();
    uint64_t start_ms = now_ms();
    WAIT_UNTIL(buffers_of_daemon(observer) < before);
    uint64_t took_ms = now_ms() - start_ms;
    mlacat_buffer_release(buffer);
    mlacat_disconnect(observer);
    mlacat_disconnect(client);
    return took_ms;
}

void library_refuses(const char *socket, uint64_t address, size_t size)
{
    struct mlacat_client *client = connect_to(socket);
    struct mlacat_buffer *buffer;
    int on_the_stack = 0;
    REQUIRE(mlacat_buffer_register_ptr(client, &on_the_stack, 4, &buffer) == MLACAT_INVALID_ARGUMENT);
    printf("  refused: %s\n", mlacat_error_message());
    REQUIRE(mlacat_buffer_register_ptr(client, NULL, 4, &buffer) == MLACAT_INVALID_ARGUMENT);
    REQUIRE(mlacat_buffer_register_ptr(client, (void *)(uintptr_t)address, size + 1, &buffer) ==
            MLACAT_INVALID_ARGUMENT);
    printf("  refused: %s\n", mlacat_error_message());
    REQUIRE(mlacat_buffer_register_ptr(client, (void *)(uintptr_t)(address + size - 2), 4, &buffer) ==
            MLACAT_INVALID_ARGUMENT);
    REQUIRE(mlacat_buffer_register_ptr(client, (void *)(uintptr_t)address, SIZE_MAX / 2, &buffer) ==
            MLACAT_INVALID_ARGUMENT);
    mlacat_disconnect(client);
}

static struct mlacat_call small_call(struct mlacat_buffer *buffer)
{
    struct mlacat_call call = {.size = sizeof(call), .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16};
    call.operand[0] = mlacat_tensor_contiguous(buffer, 0, 1, 1, 192);
    call.operand[1] = mlacat_tensor_contiguous(buffer, 1024, 1, 1, 128);
    call.operand[2] = mlacat_tensor_contiguous(buffer, 2048, 1, 1, 64);
    return call;
}

void library_waits(const char *socket, void *event, uint64_t address, void (*let_come)(void))
{
    struct mlacat_client *client = connect_to(socket);
    struct mlacat_device_info info = {.size = sizeof(info)};
    struct mlacat_result result = {.size = sizeof(result)};
    struct mlacat_stream_options by_messages = {.size = sizeof(by_messages), .transport = MLACAT_TRANSPORT_MESSAGE};
    struct mlacat_stream *streams[2];
    struct mlacat_stream *with_ring;
    struct mlacat_buffer *buffer;
    struct mlacat_event *registered;
    uint64_t id;
    MUST(mlacat_device_info(client, 0, &info));
    MUST(mlacat_stream_open_with(client, info.uuid, &by_messages, &streams[0]));
    MUST(mlacat_stream_open_with(client, info.uuid, &by_messages, &streams[1]));
    MUST(mlacat_stream_open(client, info.uuid, &with_ring));
    MUST(mlacat_buffer_register_ptr(client, (void *)(uintptr_t)address, 4096, &buffer));
    MUST(mlacat_event_register(client, event, &registered));
    struct mlacat_call call = small_call(buffer);
    call.wait = registered;
    REQUIRE(mlacat_submit(with_ring, &call, &id) == MLACAT_FAILED_PRECONDITION);
    printf("  refused: %s\n", mlacat_error_message());
    MUST(mlacat_submit(streams[0], &call, &id));
    call.wait = NULL;
    for (int i = 0; i < 50; i++) {
        MUST(mlacat_run(streams[1], &call, NULL));
    }
    REQUIRE(mlacat_wait(streams[0], id, 0, &result) == MLACAT_DEADLINE_EXCEEDED && !result.ended);
    let_come();
    MUST(mlacat_wait(streams[0], id, -1, NULL));
    mlacat_event_release(registered);
    mlacat_buffer_release(buffer);
    mlacat_disconnect(client);
}

void library_refuses_event(const char *socket, void *event)
{
    struct mlacat_client *client = connect_to(socket);
    struct mlacat_event *registered;
    REQUIRE(mlacat_event_register(client, event, &registered) == MLACAT_INVALID_ARGUMENT);
    printf("  refused: %s\n", mlacat_error_message());
    REQUIRE(mlacat_event_register(client, NULL, &registered) == MLACAT_INVALID_ARGUMENT);
    mlacat_disconnect(client);
}
