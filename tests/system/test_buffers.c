/* SPDX-License-Identifier: Apache-2.0 */
/* Registration: names that are used again, memory seen twice, descriptors that are no good, files that change. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "gpu_memory.h"
#include "proc.h"
#include "require.h"
#include "server.h"
#include "trial.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

#define PAGE_BYTES 65536 /* a multiple of any system's page */

static void test_buffers_id_returns_with_new_generation(void **state)
{
    struct raw raw;
    struct trial trial;
    raw_open(&raw, ((struct server *)*state)->socket);
    struct ref stream = raw_must_open_stream(&raw);
    trial_make(&trial, &small_shape);
    struct ref old = raw_must_register(&raw, trial.fd, trial.bytes);
    assert_int_equal(raw_unregister(&raw, old).code, STATUS_OK);
    struct ref new = raw_must_register(&raw, trial.fd, trial.bytes);
    assert_int_equal(new.id, old.id);
    assert_int_not_equal(new.generation, old.generation);
    struct call call = trial_call(&trial, old, 1);
    raw_submit(&raw, stream, &call, 1);
    assert_int_equal(raw_wait(&raw, 1).code, STATUS_NOT_FOUND);
    assert_int_equal(raw_unregister(&raw, old).code, STATUS_NOT_FOUND);
    call = trial_call(&trial, new, 2);
    raw_submit(&raw, stream, &call, 1);
    assert_int_equal(raw_wait(&raw, 2).code, STATUS_OK);
    assert_true(trial_right(&trial));
    trial_free(&trial);
    raw_close(&raw);
}

static void test_buffers_unknown_names_are_refused(void **state)
{
    static const struct ref unknown[] = {{0, 0}, {0, 1}, {7, 1}, {UINT32_MAX, UINT32_MAX}};
    struct raw raw;
    raw_open(&raw, ((struct server *)*state)->socket);
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
        struct outcome outcome = raw_unregister(&raw, unknown[i]);
        assert_int_equal(outcome.code, STATUS_NOT_FOUND);
        assert_int_equal(outcome.scope, SCOPE_CALL);
        assert_int_equal(raw_close_stream(&raw, unknown[i]).code, STATUS_NOT_FOUND);
        assert_int_equal(raw_cancel(&raw, unknown[i], 1).code, STATUS_NOT_FOUND);
    }
    raw_close(&raw);
}

static void test_buffers_of_another_client_are_unknown(void **state)
{
    struct server *server = *state;
    struct raw owner;
    struct raw other;
    struct trial trial;
    raw_open(&owner, server->socket);
    raw_open(&other, server->socket);
    trial_make(&trial, &small_shape);
    struct ref buffer = raw_must_register(&owner, trial.fd, trial.bytes);
    struct ref stream = raw_must_open_stream(&other);
    struct ref owners_stream = raw_must_open_stream(&owner);
    struct call call = trial_call(&trial, buffer, 1);
    raw_submit(&other, stream, &call, 1);
    assert_int_equal(raw_wait(&other, 1).code, STATUS_NOT_FOUND);
    assert_int_equal(raw_unregister(&other, buffer).code, STATUS_NOT_FOUND);
    assert_int_equal(raw_close_stream(&other, stream).code, STATUS_OK); /* the same numbers as the owner's stream */
    raw_submit(&owner, owners_stream, &call, 1);
    assert_int_equal(raw_wait(&owner, 1).code, STATUS_OK);
    assert_true(trial_right(&trial));
    raw_close(&other);
    raw_close(&owner);
    trial_free(&trial);
}

static void test_buffers_alias_of_one_memfd_is_seen(void **state)
{
    struct server *server = *state;
    struct raw raw;
    raw_open(&raw, server->socket);
    struct ref stream = raw_must_open_stream(&raw);
    int fd = memfd_make(PAGE_BYTES, F_SEAL_SHRINK);
    uint8_t *memory = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    memcpy(memory, "abcdefgh", 8);
    gpu_memory_upload(fd);
    struct ref one = raw_must_register(&raw, fd, PAGE_BYTES);
    struct ref two = raw_must_register(&raw, fd, PAGE_BYTES);
    struct call call = row_call(1, one, 2, 0, 4, 4, 4); /* writes where it reads */
    call.operand[0].buffer = two;
    raw_submit(&raw, stream, &call, 1);
    struct outcome outcome = raw_wait(&raw, 1);
    assert_int_equal(outcome.code, STATUS_INVALID_ARGUMENT);
    gpu_memory_download(fd);
    assert_memory_equal(memory, "abcdefgh", 8);
    call = row_call(2, one, 16, 0, 4, 4, 4);
    call.operand[0].buffer = two;
    raw_submit(&raw, stream, &call, 1);
    assert_int_equal(raw_wait(&raw, 2).code, STATUS_OK);
    gpu_memory_download(fd);
    assert_memory_equal(memory + 16, "abcdefgh", 8);
    assert_int_equal(raw_unregister(&raw, one).code, STATUS_OK);
    WAIT_UNTIL(memfds_mapped(server->pid, 1));
    call = row_call(3, two, 32, 0, 4, 4, 4);
    raw_submit(&raw, stream, &call, 1);
    assert_int_equal(raw_wait(&raw, 3).code, STATUS_OK);
    gpu_memory_download(fd);
    assert_memory_equal(memory + 32, "abcdefgh", 8);
    assert_int_equal(raw_unregister(&raw, two).code, STATUS_OK);
    WAIT_UNTIL(memfds_mapped(server->pid, 0));
    munmap(memory, PAGE_BYTES);
    close(fd);
    raw_close(&raw);
}

static void test_buffers_extents_outside_are_refused(void **state)
{
    struct raw raw;
    raw_open(&raw, ((struct server *)*state)->socket);
    struct ref stream = raw_must_open_stream(&raw);
    int fd = memfd_make(PAGE_BYTES, F_SEAL_SHRINK);
    struct ref buffer = raw_must_register(&raw, fd, 4096); /* less than the file */
    static const uint64_t offsets[] = {4089, 4096, UINT64_MAX, UINT64_MAX - 7, INT64_MAX};
    for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
        struct call call = row_call(i, buffer, offsets[i], 0, 4, 4, 4);
        raw_submit(&raw, stream, &call, 1);
        struct outcome outcome = raw_wait(&raw, i);
        assert_int_equal(outcome.code, STATUS_INVALID_ARGUMENT);
        assert_non_null(strstr(outcome.message, "out"));
    }
    struct call call = row_call(9, buffer, 4088, 0, 4, 4, 4);
    raw_submit(&raw, stream, &call, 1);
    assert_int_equal(raw_wait(&raw, 9).code, STATUS_OK);
    close(fd);
    raw_close(&raw);
}

/* ----------------------------------------------------------------------------------------------- wrong descriptors */

static int reopened(int memfd, int flags)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", memfd);
    int fd = open(path, flags | O_CLOEXEC);
    REQUIRE(fd >= 0, "%s", path);
    close(memfd);
    return fd;
}

/* Registers `fd`, which must be refused, and closes it. */
static void refuse(struct raw *raw, int fd, uint64_t size_bytes, uint32_t code, const char *word)
{
    struct ref buffer;
    REQUIRE(fd >= 0);
    struct outcome outcome = raw_register(raw, fd, size_bytes, &buffer);
    REQUIRE(outcome.code == code, "%u instead of %u: %s", outcome.code, code, outcome.message);
    REQUIRE(outcome.scope == SCOPE_CALL);
    REQUIRE(strstr(outcome.message, word) != NULL, "\"%s\" does not say \"%s\"", outcome.message, word);
    close(fd);
}

static void test_buffers_wrong_descriptors_are_refused(void **state)
{
    struct server *server = *state;
    struct raw raw;
    int ends[2];
    raw_open(&raw, server->socket);
    uint32_t fds_nr = proc_fds(server->pid);
    refuse(&raw, memfd_make(4096, 0), 4096, STATUS_FAILED_PRECONDITION, "F_SEAL_SHRINK");
    refuse(&raw, memfd_make(4096, F_SEAL_GROW), 4096, STATUS_FAILED_PRECONDITION, "F_SEAL_SHRINK");
    refuse(&raw, memfd_make(4096, F_SEAL_SHRINK | F_SEAL_WRITE), 4096, STATUS_FAILED_PRECONDITION, "F_SEAL_WRITE");
    refuse(&raw, memfd_make(4096, F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE), 4096, STATUS_FAILED_PRECONDITION, "FUTURE");
    refuse(&raw, reopened(memfd_make(4096, F_SEAL_SHRINK), O_RDONLY), 4096, STATUS_INVALID_ARGUMENT, "O_RDWR");
    refuse(&raw, reopened(memfd_make(4096, F_SEAL_SHRINK), O_PATH), 4096, STATUS_INVALID_ARGUMENT, "");
    refuse(&raw, memfd_make(4096, F_SEAL_SHRINK), 0, STATUS_INVALID_ARGUMENT, "size 0");
    refuse(&raw, memfd_make(4096, F_SEAL_SHRINK), 4097, STATUS_INVALID_ARGUMENT, "4097");
    refuse(&raw, memfd_make(4096, F_SEAL_SHRINK), UINT64_MAX, STATUS_INVALID_ARGUMENT, "18446744073709551615");
    refuse(&raw, memfd_make(0, F_SEAL_SHRINK), 1, STATUS_INVALID_ARGUMENT, "of 0 bytes");
    refuse(&raw, memfd_make((size_t)65 << 30, F_SEAL_SHRINK), 4096, STATUS_RESOURCE_EXHAUSTED, "max_mapped");
    refuse(&raw, open("/proc/self/exe", O_RDONLY | O_CLOEXEC), 4096, STATUS_INVALID_ARGUMENT, "memfd");
    refuse(&raw, open("/dev/null", O_RDWR | O_CLOEXEC), 4096, STATUS_INVALID_ARGUMENT, "memfd");
    refuse(&raw, open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), 4096, STATUS_INVALID_ARGUMENT, "memfd");
    refuse(&raw, eventfd(0, EFD_CLOEXEC), 4096, STATUS_INVALID_ARGUMENT, "memfd");
    refuse(&raw, socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), 4096, STATUS_INVALID_ARGUMENT, "memfd");
    assert_int_equal(pipe(ends), 0);
    close(ends[0]);
    refuse(&raw, ends[1], 4096, STATUS_INVALID_ARGUMENT, "memfd");
    int huge = memfd_create(MEMFD_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);
    if (huge < 0 || ftruncate(huge, (off_t)2 << 20) != 0 || fcntl(huge, F_ADD_SEALS, F_SEAL_SHRINK) != 0) {
        print_message("no hugetlb memfd on this machine: that part is left out\n");
    } else {
        refuse(&raw, huge, 4096, STATUS_INVALID_ARGUMENT, "huge pages");
    }
    WAIT_UNTIL(proc_fds(server->pid) == fds_nr);
    assert_int_equal(proc_maps(server->pid, MEMFD_NAME), 0);
    assert_int_equal(raw_stats(&raw).mapped_bytes, 0);
    raw_close(&raw);
}

/* ----------------------------------------------------------------------------------------------- files that change */

static void test_buffers_cannot_shrink_but_grow(void **state)
{
    struct raw raw;
    struct trial trial;
    raw_open(&raw, ((struct server *)*state)->socket);
    struct ref stream = raw_must_open_stream(&raw);
    trial_make(&trial, &small_shape);
    struct ref buffer = raw_must_register(&raw, trial.fd, trial.bytes);
    assert_int_equal(ftruncate(trial.fd, 0), -1);
    assert_int_equal(ftruncate(trial.fd, 1 << 20), 0);
    struct call call = trial_call(&trial, buffer, 1);
    raw_submit(&raw, stream, &call, 1);
    assert_int_equal(raw_wait(&raw, 1).code, STATUS_OK);
    assert_true(trial_right(&trial));
    trial_free(&trial);
    raw_close(&raw);
}

static void test_buffers_hole_punched_during_calls(void **state)
{
    struct server *server = *state;
    struct raw bad;
    struct raw good;
    struct trial slow;
    struct trial trial;
    raw_open(&bad, server->socket);
    raw_open(&good, server->socket);
    slow_make(&slow);
    trial_make(&trial, &small_shape);
    struct ref slow_buffer = raw_must_register(&bad, slow.fd, slow.bytes);
    struct ref buffer = raw_must_register(&good, trial.fd, trial.bytes);
    struct ref bad_stream = raw_must_open_stream(&bad);
    struct ref good_stream = raw_must_open_stream(&good);
    slow_begin(&bad, bad_stream, &slow, slow_buffer, 1);
    struct call call = trial_call(&slow, slow_buffer, 2);
    raw_submit(&bad, bad_stream, &call, 1);
    for (uint32_t i = 0; bad.done_nr < 2; i++) {
        assert_int_equal(fallocate(slow.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)slow.bytes), 0);
        trial_refill(&trial, i);
        call = trial_call(&trial, buffer, i);
        raw_submit(&good, good_stream, &call, 1);
        assert_int_equal(raw_wait(&good, i).code, STATUS_OK);
        assert_true(trial_right(&trial));
        raw_ping(&bad); /* takes in the completions that have come */
    }
    assert_int_equal(raw_wait(&bad, 1).code, STATUS_OK);
    assert_int_equal(raw_wait(&bad, 2).code, STATUS_OK);
    raw_close(&bad);
    raw_close(&good);
    trial_free(&slow);
    trial_free(&trial);
}

/* What the client does with its own descriptor and mapping is its own affair. */
static void test_buffers_outlive_the_clients_mapping(void **state)
{
    struct raw raw;
    raw_open(&raw, ((struct server *)*state)->socket);
    struct ref stream = raw_must_open_stream(&raw);
    int fd = memfd_make(PAGE_BYTES, F_SEAL_SHRINK);
    struct ref buffer = raw_must_register(&raw, fd, PAGE_BYTES);
    close(fd);
    struct call call = row_call(1, buffer, 64, 0, 4, 4, 4);
    raw_submit(&raw, stream, &call, 1);
    assert_int_equal(raw_wait(&raw, 1).code, STATUS_OK);
    raw_close(&raw);
}

static struct outcome register_message(struct raw *raw, const char *device, Mlacat__V1__Memory *memory)
{
    Mlacat__V1__RegisterBuffer message = MLACAT__V1__REGISTER_BUFFER__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    message.device_uuid = (char *)(uintptr_t)device;
    message.memory = memory;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_REGISTER_BUFFER;
    envelope.register_buffer = &message;
    return raw_answer(raw, &envelope);
}

static void test_buffers_of_another_kind_are_refused(void **state)
{
    Mlacat__V1__CudaIpcMemory ipc = MLACAT__V1__CUDA_IPC_MEMORY__INIT;
    Mlacat__V1__Memory memory = MLACAT__V1__MEMORY__INIT;
    uint8_t handle[65] = {0};
    struct raw raw;
    raw_open(&raw, ((struct server *)*state)->socket);
    assert_int_equal(register_message(&raw, "host", NULL).code, STATUS_INVALID_ARGUMENT);
    assert_int_equal(register_message(&raw, "host", &memory).code, STATUS_INVALID_ARGUMENT);
    memory.kind_case = MLACAT__V1__MEMORY__KIND_CUDA_IPC;
    memory.cuda_ipc = &ipc;
    ipc.handle.data = handle;
    for (ipc.handle.len = 63; ipc.handle.len <= 65; ipc.handle.len++) {
        assert_int_equal(register_message(&raw, "host", &memory).code, STATUS_INVALID_ARGUMENT);
    }
    ipc.handle.len = 64;
    struct outcome outcome = register_message(&raw, "GPU-0", &memory);
    assert_int_equal(outcome.code, STATUS_NOT_FOUND);
    assert_non_null(strstr(outcome.message, "GPU-0"));
    assert_non_null(strstr(outcome.message, "\"host\""));
    assert_true(raw_ready(&raw, NULL));
    raw_close(&raw);
}

/* A client that gives back a buffer whose name it has not been told yet. */
static void test_buffers_name_guessed_before_its_reply(void **state)
{
    struct server *server = *state;
    struct raw raw;
    Mlacat__V1__BufferRef ref = MLACAT__V1__BUFFER_REF__INIT;
    Mlacat__V1__UnregisterBuffer unregister = MLACAT__V1__UNREGISTER_BUFFER__INIT;
    Mlacat__V1__HostMemory host = MLACAT__V1__HOST_MEMORY__INIT;
    Mlacat__V1__Memory memory = MLACAT__V1__MEMORY__INIT;
    Mlacat__V1__RegisterBuffer message = MLACAT__V1__REGISTER_BUFFER__INIT;
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    int fd = memfd_make(4096, F_SEAL_SHRINK);
    host.size_bytes = 4096;
    memory.kind_case = MLACAT__V1__MEMORY__KIND_HOST;
    memory.host = &host;
    message.device_uuid = (char *)(uintptr_t) "host";
    message.memory = &memory;
    unregister.buffer = &ref;
    for (uint32_t i = 0; i < 100; i++) {
        raw_open(&raw, server->socket);
        ref.id = 0;
        ref.generation = 1;
        envelope.request_id = 1;
        envelope.body_case = MLACAT__V1__ENVELOPE__BODY_REGISTER_BUFFER;
        envelope.register_buffer = &message;
        raw_send_envelope(&raw, &envelope, &fd, 1);
        envelope.request_id = 2;
        envelope.body_case = MLACAT__V1__ENVELOPE__BODY_UNREGISTER_BUFFER;
        envelope.unregister_buffer = &unregister;
        raw_send_envelope(&raw, &envelope, NULL, 0);
        for (int k = 0; k < 2; k++) {
            Mlacat__V1__Envelope *reply = raw_receive(&raw);
            REQUIRE(reply != NULL);
            REQUIRE(reply->request_id == 2 || reply->body_case == MLACAT__V1__ENVELOPE__BODY_BUFFER_REGISTERED);
            raw_free(reply);
        }
        raw_close(&raw);
    }
    WAIT_UNTIL(memfds_mapped(server->pid, 0));
    close(fd);
}

/* Memory that the daemon has open. */
static uint32_t count_open(const struct server *server)
{
    return proc_maps(server->pid, gpu_memory_used() ? "memfd:fake-cuda" : MEMFD_NAME);
}

/* As mlacat.proto says that a client waits for its memory: at the end it is closed, and not a moment later. */
static void await_closed(struct raw *raw)
{
    struct counts counts;
    WAIT_UNTIL((counts = raw_stats(raw)).memory_leaving == 0);
    uint64_t released = counts.memory_released;
    WAIT_UNTIL(raw_stats(raw).memory_closed >= released);
}

#define LEAVING 5

static void test_buffers_stats_tell_when_memory_is_closed(void **state)
{
    struct server *server = *state;
    struct raw raw;
    int fds[LEAVING];
    struct ref buffers[LEAVING];
    if (gpu_memory_used() && !gpu_memory_is_fake()) {
        skip(); /* of a real GPU nobody sees what a process has open */
    }
    uint32_t before = count_open(server);
    raw_open(&raw, server->socket);
    for (int turn = 0; turn < 3; turn++) {
        for (int i = 0; i < LEAVING; i++) {
            fds[i] = memfd_make(PAGE_BYTES, F_SEAL_SHRINK);
            buffers[i] = raw_must_register(&raw, fds[i], PAGE_BYTES);
        }
        for (int i = 1; i < LEAVING; i++) {
            assert_int_equal(raw_unregister(&raw, buffers[i]).code, STATUS_OK);
        }
        await_closed(&raw);
        assert_int_equal(count_open(server), before + 1);
        assert_int_equal(raw_unregister(&raw, buffers[0]).code, STATUS_OK);
        await_closed(&raw);
        assert_int_equal(count_open(server), before);
        for (int i = 0; i < LEAVING; i++) {
            gpu_memory_free(fds[i]);
            close(fds[i]);
        }
    }
    raw_close(&raw);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_buffers_id_returns_with_new_generation),
        WITH_SERVER(test_buffers_unknown_names_are_refused),
        WITH_SERVER(test_buffers_of_another_client_are_unknown),
        WITH_SERVER(test_buffers_alias_of_one_memfd_is_seen),
        WITH_SERVER(test_buffers_extents_outside_are_refused),
        WITH_SERVER(test_buffers_outlive_the_clients_mapping),
        WITH_SERVER(test_buffers_stats_tell_when_memory_is_closed),
    };
    const struct CMUnitTest memfd_tests[] = {
        WITH_SERVER(test_buffers_wrong_descriptors_are_refused),
        WITH_SERVER(test_buffers_cannot_shrink_but_grow),
        WITH_SERVER(test_buffers_of_another_kind_are_refused),
        WITH_SERVER(test_buffers_name_guessed_before_its_reply),
        WITH_SERVER(test_buffers_hole_punched_during_calls),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return gpu_memory_used() ? failed : failed + cmocka_run_group_tests(memfd_tests, NULL, NULL);
}
