/* SPDX-License-Identifier: Apache-2.0 */
/* The fake CUDA driver itself: what tests of the CUDA device build on. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "concat_mla_host.h"
#include "concat_mla_launch.h"
#include "fake_cuda.h"

#define MIB ((size_t)1 << 20)
#define CHUNK (2 * MIB)
#define OK CUDA_RESULT_OK
#define GREATER_OR_EQUAL 0

static struct cuda_context *context;
static struct cuda_module *module;

/* Everything is closed at the end of each test. */
static int set_up(void **state)
{
    (void)state;
    fake_cuda_behave("");
    assert_int_equal(fake_cuInit(0), OK);
    assert_int_equal(fake_cuDevicePrimaryCtxRetain(&context, 0), OK);
    assert_int_equal(fake_cuCtxSetCurrent(context), OK);
    assert_int_equal(fake_cuModuleLoadDataEx(&module, "--gpu", 0, NULL, NULL), OK);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    static const struct fake_cuda_live none;
    assert_int_equal(fake_cuModuleUnload(module), OK);
    assert_int_equal(fake_cuDevicePrimaryCtxRelease(0), OK);
    struct fake_cuda_live live = fake_cuda_live();
    assert_memory_equal(&live, &none, sizeof(none));
    return 0;
}

static void *memory_of(cuda_address address)
{
    return (void *)(uintptr_t)address;
}

static cuda_address allocate(size_t bytes)
{
    cuda_address address = 0;
    assert_int_equal(fake_cuMemAlloc(&address, bytes), OK);
    return address;
}

static struct cuda_stream *make_stream(void)
{
    struct cuda_stream *stream = NULL;
    assert_int_equal(fake_cuStreamCreate(&stream, CUDA_STREAM_NON_BLOCKING), OK);
    return stream;
}

/* ---- start and failures ---- */

static void test_fake_cuda_is_what_the_service_loads(void **state)
{
    (void)state;
    struct error err = {0};
    const struct cuda_api *api = cuda_api_get(&err);
    assert_non_null(api);
    assert_int_equal(api->driver_version, 13000);
    assert_ptr_equal(api->cuLaunchKernel, fake_cuLaunchKernel);
}

static void test_fake_cuda_fails_the_call_that_was_named(void **state)
{
    (void)state;
    int nr;
    fake_cuda_behave("fail=cuDeviceGetCount:2:999;fail=cuDeviceGet:*:101");
    assert_int_equal(fake_cuDeviceGetCount(&nr), OK);
    assert_int_equal(fake_cuDeviceGetCount(&nr), 999);
    assert_int_equal(fake_cuDeviceGetCount(&nr), OK);
    assert_int_equal(fake_cuDeviceGet(&nr, 0), 101);
    assert_int_equal(fake_cuDeviceGet(&nr, 0), 101);
    assert_int_equal(fake_cuda_calls("cuDeviceGetCount"), 3);
    assert_int_equal(fake_cuda_calls("cuDeviceGet"), 2);
    assert_int_equal(fake_cuda_calls("cuInit"), 0);
}

static void test_fake_cuda_needs_a_context(void **state)
{
    (void)state;
    cuda_address address;
    assert_int_equal(fake_cuCtxSetCurrent(NULL), OK);
    assert_int_equal(fake_cuMemAlloc(&address, 1), 201);
    assert_int_equal(fake_cuCtxSetCurrent(context), OK);
}

static void test_fake_cuda_runs_out_of_memory(void **state)
{
    (void)state;
    cuda_address address;
    fake_cuda_behave("memory=1000");
    assert_int_equal(fake_cuMemAlloc(&address, 1001), CUDA_RESULT_OUT_OF_MEMORY);
    assert_int_equal(fake_cuMemAlloc(&address, 1000), OK);
    assert_int_equal(fake_cuMemAlloc(&address, 1), CUDA_RESULT_OUT_OF_MEMORY);
    assert_int_equal(fake_cuMemFree(address), OK);
}

static void test_fake_cuda_counts_for_other_processes(void **state)
{
    (void)state;
    char path[] = "/tmp/mlacat-counts-XXXXXX";
    char words[64];
    struct fake_cuda_count counts[200];
    close(mkstemp(path));
    snprintf(words, sizeof(words), "counts=%s", path);
    fake_cuda_behave(words);
    assert_int_equal(fake_cuInit(0), OK);
    int fd = open(path, O_RDONLY);
    ssize_t bytes = read(fd, counts, sizeof(counts));
    close(fd);
    unlink(path);
    assert_true(bytes > 0 && bytes % (ssize_t)sizeof(counts[0]) == 0);
    assert_string_equal(counts[0].name, "cuInit");
    assert_int_equal(counts[0].calls, 1);
}

/* ---- memory between processes ---- */

struct exported {
    struct cuda_ipc_handle handle;
    uint64_t buffer_id;
};

static struct exported export_memory(cuda_address address)
{
    struct exported exported;
    assert_int_equal(fake_cuIpcGetMemHandle(&exported.handle, address), OK);
    assert_int_equal(fake_cuPointerGetAttribute(&exported.buffer_id, CUDA_POINTER_BUFFER_ID, address), OK);
    return exported;
}

/*
 * Another process: exports memory that it filled with '1', and once more, after a byte, new memory that it filled with
 * '2' in the place of the old. After a second byte it ends.
 */
static pid_t start_exporter(int *socket)
{
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        cuda_address address = 0;
        close(fds[0]);
        for (int fill = '1'; fill <= '2'; fill++) {
            address = allocate(1000);
            memset(memory_of(address), fill, 1000);
            struct exported exported = export_memory(address);
            if (write(fds[1], &exported, sizeof(exported)) < 0 || read(fds[1], &byte, 1) != 1) {
                _exit(1);
            }
            fake_cuMemFree(address);
        }
        _exit(0);
    }
    close(fds[1]);
    *socket = fds[0];
    return pid;
}

static struct exported receive_exported(int socket)
{
    struct exported exported;
    assert_int_equal(read(socket, &exported, sizeof(exported)), (ssize_t)sizeof(exported));
    return exported;
}

static void test_fake_cuda_opens_memory_of_another_process(void **state)
{
    (void)state;
    int socket;
    pid_t pid = start_exporter(&socket);
    struct exported first = receive_exported(socket);
    cuda_address address = 0;
    cuda_address again = 0;
    cuda_address base = 0;
    size_t bytes = 0;
    assert_int_equal(fake_cuIpcOpenMemHandle(&address, first.handle, CUDA_IPC_LAZY_PEER_ACCESS), OK);
    assert_int_equal(((char *)memory_of(address))[999], '1');
    assert_int_equal(fake_cuIpcOpenMemHandle(&again, first.handle, CUDA_IPC_LAZY_PEER_ACCESS), OK);
    assert_int_equal(again, address);
    assert_int_equal(fake_cuMemGetAddressRange(&base, &bytes, address + 500), OK);
    assert_int_equal(base, address);
    assert_int_equal(bytes, 1000);
    assert_int_equal(fake_cuda_live().opened, 2);
    /* New memory has the bytes of the old handle, but another BUFFER_ID. */
    assert_int_equal(write(socket, "", 1), 1);
    struct exported second = receive_exported(socket);
    assert_memory_equal(&first.handle, &second.handle, sizeof(first.handle));
    assert_int_not_equal(first.buffer_id, second.buffer_id);
    fake_cuda_behave("already_mapped");
    assert_int_equal(fake_cuIpcOpenMemHandle(&again, second.handle, 1), CUDA_RESULT_ALREADY_MAPPED);
    fake_cuda_behave("");
    assert_int_equal(fake_cuIpcOpenMemHandle(&again, second.handle, 1), OK);
    assert_int_equal(((char *)memory_of(again))[999], '1'); /* still the old memory */
    for (int i = 0; i < 3; i++) {
        assert_int_equal(fake_cuIpcCloseMemHandle(address), OK);
    }
    assert_int_equal(fake_cuIpcCloseMemHandle(address), CUDA_RESULT_INVALID_VALUE);
    assert_int_equal(fake_cuIpcOpenMemHandle(&address, second.handle, 1), OK);
    assert_int_equal(((char *)memory_of(address))[999], '2');
    assert_int_equal(fake_cuIpcCloseMemHandle(address), OK);
    assert_int_equal(write(socket, "", 1), 1);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_int_equal(fake_cuIpcOpenMemHandle(&address, second.handle, 1), 201); /* the process is gone */
    close(socket);
}

static void test_fake_cuda_refuses_handles_of_its_own_process(void **state)
{
    (void)state;
    cuda_address address = allocate(100);
    cuda_address opened = 0;
    struct exported exported = export_memory(address);
    assert_int_equal(fake_cuIpcOpenMemHandle(&opened, exported.handle, 1), 201);
    fake_cuda_behave("same_process");
    assert_int_equal(fake_cuIpcOpenMemHandle(&opened, exported.handle, 1), OK);
    assert_int_equal(fake_cuMemFree(address), OK);
    memset(memory_of(opened), 1, 100); /* the mapping keeps the memory */
    assert_int_equal(fake_cuIpcCloseMemHandle(opened), OK);
    assert_int_equal(fake_cuIpcOpenMemHandle(&opened, exported.handle, 1), CUDA_RESULT_INVALID_HANDLE);
    memset(exported.handle.bytes, 7, sizeof(exported.handle.bytes));
    assert_int_equal(fake_cuIpcOpenMemHandle(&opened, exported.handle, 1), CUDA_RESULT_INVALID_VALUE);
}

/* ---- chunks ---- */

static const struct cuda_allocation_properties pinned = {
    .type = CUDA_ALLOCATION_PINNED,
    .handle_types = CUDA_HANDLE_POSIX_FD,
    .location = {.type = CUDA_LOCATION_DEVICE},
};
static const struct cuda_access read_write = {.location = {.type = CUDA_LOCATION_DEVICE},
                                              .flags = CUDA_ACCESS_READ_WRITE};

static int export_chunk(size_t bytes)
{
    cuda_allocation allocation = 0;
    int fd = -1;
    assert_int_equal(fake_cuMemCreate(&allocation, bytes, &pinned, 0), OK);
    assert_int_equal(fake_cuMemExportToShareableHandle(&fd, allocation, CUDA_HANDLE_POSIX_FD, 0), OK);
    assert_int_equal(fake_cuMemRelease(allocation), OK);
    return fd;
}

static void map_chunk(cuda_address at, int fd, size_t bytes)
{
    cuda_allocation allocation = 0;
    assert_int_equal(fake_cuMemImportFromShareableHandle(&allocation, (void *)(intptr_t)fd, CUDA_HANDLE_POSIX_FD), OK);
    assert_int_equal(fake_cuMemMap(at, bytes + CHUNK, 0, allocation, 0), CUDA_RESULT_INVALID_VALUE); /* too long */
    assert_int_equal(fake_cuMemMap(at, bytes, 0, allocation, 0), OK);
    assert_int_equal(fake_cuMemMap(at, bytes, 0, allocation, 0), CUDA_RESULT_INVALID_VALUE); /* taken */
    assert_int_equal(fake_cuMemRelease(allocation), OK);
    assert_int_equal(fake_cuMemRelease(allocation), CUDA_RESULT_INVALID_VALUE);
}

static void test_fake_cuda_maps_chunks_side_by_side(void **state)
{
    (void)state;
    int fds[2] = {export_chunk(CHUNK), export_chunk(2 * CHUNK)};
    cuda_address range = 0;
    cuda_address twin = 0;
    uint64_t blocks[2];
    assert_int_equal(fake_cuMemAddressReserve(&range, 3 * CHUNK, 0, 0, 0), OK);
    assert_int_equal(fake_cuMemAddressReserve(&twin, CHUNK, 0, 0, 0), OK);
    map_chunk(range, fds[0], CHUNK);
    assert_int_equal(fake_cuMemSetAccess(range, 3 * CHUNK, &read_write, 1), CUDA_RESULT_INVALID_VALUE);
    map_chunk(range + CHUNK, fds[1], 2 * CHUNK);
    map_chunk(twin, fds[0], CHUNK);
    assert_int_equal(fake_cuMemSetAccess(range, 3 * CHUNK, &read_write, 1), OK);
    assert_int_equal(fake_cuMemSetAccess(twin, CHUNK, &read_write, 1), OK);
    memset(memory_of(range), 5, 3 * CHUNK);
    assert_int_equal(((char *)memory_of(twin))[CHUNK - 1], 5); /* the same memory, twice */
    assert_int_equal(fake_cuPointerGetAttribute(&blocks[0], CUDA_POINTER_MEMORY_BLOCK_ID, range), OK);
    assert_int_equal(fake_cuPointerGetAttribute(&blocks[1], CUDA_POINTER_MEMORY_BLOCK_ID, twin), OK);
    assert_int_equal(blocks[0], blocks[1]);
    assert_int_equal(fake_cuMemAddressFree(range, 3 * CHUNK), CUDA_RESULT_INVALID_VALUE); /* still mapped */
    assert_int_equal(fake_cuMemUnmap(range, 3 * CHUNK), CUDA_RESULT_INVALID_VALUE);       /* not what was mapped */
    assert_int_equal(fake_cuMemUnmap(range, CHUNK), OK);
    assert_int_equal(fake_cuMemUnmap(range + CHUNK, 2 * CHUNK), OK);
    assert_int_equal(fake_cuMemUnmap(twin, CHUNK), OK);
    assert_int_equal(fake_cuMemAddressFree(range, 3 * CHUNK), OK);
    assert_int_equal(fake_cuMemAddressFree(twin, CHUNK), OK);
    close(fds[0]);
    close(fds[1]);
}

static void test_fake_cuda_imports_only_its_own_descriptors(void **state)
{
    (void)state;
    cuda_allocation allocation = 0;
    int fd = memfd_create("other", MFD_CLOEXEC);
    assert_int_equal(fake_cuMemImportFromShareableHandle(&allocation, (void *)(intptr_t)fd, CUDA_HANDLE_POSIX_FD), 304);
    close(fd);
    assert_int_equal(fake_cuMemImportFromShareableHandle(&allocation, (void *)(intptr_t)fd, CUDA_HANDLE_POSIX_FD), 304);
}

/* ---- streams ---- */

struct page {
    void *host;
    cuda_address address;
};

static struct page register_page(void)
{
    struct page page = {.host = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)};
    assert_ptr_not_equal(page.host, MAP_FAILED);
    assert_int_equal(fake_cuMemHostRegister(page.host, 4096, CUDA_HOST_REGISTER_DEVICE_MAP), OK);
    assert_int_equal(fake_cuMemHostGetDevicePointer(&page.address, page.host, 0), OK);
    return page;
}

static void drop_page(struct page page)
{
    assert_int_equal(fake_cuMemHostUnregister(page.host), OK);
    munmap(page.host, 4096);
}

static void test_fake_cuda_keeps_host_and_device_addresses_apart(void **state)
{
    (void)state;
    struct page page = register_page();
    struct cuda_stream *stream = make_stream();
    assert_int_not_equal(page.address, (uintptr_t)page.host);
    assert_int_equal(fake_cuMemHostRegister(page.host, 4096, CUDA_HOST_REGISTER_DEVICE_MAP), 712);
    assert_int_equal(fake_cuStreamWriteValue64(stream, (uintptr_t)page.host, 5, 0), CUDA_RESULT_INVALID_VALUE);
    assert_int_equal(fake_cuStreamWriteValue64(stream, page.address + 4, 5, 0), CUDA_RESULT_INVALID_VALUE);
    assert_int_equal(fake_cuStreamWriteValue64(stream, page.address + 8, 5, 0), OK);
    assert_int_equal(((uint64_t *)page.host)[1], 5);
    assert_int_equal(fake_cuStreamDestroy(stream), OK);
    assert_int_equal(fake_cuStreamQuery(stream), CUDA_RESULT_INVALID_HANDLE);
    drop_page(page);
    assert_int_equal(fake_cuMemHostUnregister(page.host), 713);
}

static void test_fake_cuda_stands_still_until_told(void **state)
{
    (void)state;
    struct page page = register_page();
    struct cuda_stream *stream = make_stream();
    const uint64_t *word = page.host;
    fake_cuda_behave("manual");
    assert_int_equal(fake_cuStreamWriteValue64(stream, page.address, 1, 0), OK);
    assert_int_equal(fake_cuStreamWriteValue64(stream, page.address, 2, 0), OK);
    assert_int_equal(*word, 0);
    assert_int_equal(fake_cuStreamQuery(stream), CUDA_RESULT_NOT_READY);
    assert_int_equal(fake_cuda_live().pending, 2);
    assert_int_equal(fake_cuda_run(1), 1);
    assert_int_equal(*word, 1);
    assert_int_equal(fake_cuda_run(10), 1);
    assert_int_equal(*word, 2);
    assert_int_equal(fake_cuStreamQuery(stream), OK);
    assert_int_equal(fake_cuStreamWriteValue64(stream, page.address, 3, 0), OK);
    assert_int_equal(fake_cuStreamDestroy(stream), OK); /* what is on it still runs */
    assert_int_equal(fake_cuda_run(10), 1);
    assert_int_equal(*word, 3);
    drop_page(page);
}

/* A client's stream may wait; a plain store releases it, and only then what stands behind it runs. */
static void test_fake_cuda_waits_for_a_word(void **state)
{
    (void)state;
    struct page page = register_page();
    struct cuda_stream *stream = make_stream();
    uint64_t *words = page.host;
    assert_int_equal(fake_cuStreamWaitValue64(stream, page.address, 7, GREATER_OR_EQUAL), OK);
    assert_int_equal(fake_cuStreamWriteValue64(stream, page.address + 8, 1, 0), OK);
    assert_int_equal(words[1], 0);
    assert_int_equal(fake_cuStreamQuery(stream), CUDA_RESULT_NOT_READY);
    __atomic_store_n(&words[0], 8, __ATOMIC_RELEASE);
    assert_int_equal(fake_cuStreamSynchronize(stream), OK);
    assert_int_equal(words[1], 1);
    assert_int_equal(fake_cuStreamDestroy(stream), OK);
    drop_page(page);
}

/* ---- kernels ---- */

static int launch(struct cuda_stream *stream, const char *name, unsigned grid, unsigned block, void **parameters)
{
    struct cuda_function *function = NULL;
    assert_int_equal(fake_cuModuleGetFunction(&function, module, name), OK);
    return fake_cuLaunchKernel(function, grid, 1, 1, block, 1, 1, 0, stream, parameters, NULL);
}

static int launch_piece(struct cuda_stream *stream, struct concat_mla_launch *piece)
{
    char name[CONCAT_MLA_NAME_BYTES];
    concat_mla_kernel_name(piece->range.vector_bytes, name);
    return launch(stream, name, piece->grid, piece->block, (void *[]){&piece->args, &piece->range});
}

/* Launches a call in pieces of about 64 KiB. Returns how many. */
static int launch_pieces(struct cuda_stream *stream, const struct concat_mla_args *args)
{
    struct concat_mla_plan plan;
    struct concat_mla_launch launch;
    int launches_nr = 0;
    concat_mla_plan_init(&plan, args, 1);
    while (concat_mla_plan_next(&plan, &launch)) {
        assert_int_equal(launch_piece(stream, &launch), OK);
        launches_nr++;
    }
    return launches_nr;
}

/* The same in one launch, with its first row as a call beside it. */
static void launch_many(struct cuda_stream *stream, const struct concat_mla_args *args)
{
    static struct concat_mla_many many;
    struct concat_mla_args row = *args;
    row.dim0 = row.dim1 = 1;
    concat_mla_many_init(&many, UINT64_C(1) << 32);
    assert_true(concat_mla_many_add(&many, &row) && concat_mla_many_add(&many, args));
    assert_int_equal(launch(stream, CONCAT_MLA_MANY_NAME, many.grid, CONCAT_MLA_MANY_THREADS, (void *[]){&many.args}),
                     OK);
}

/* In one block, which then writes 5 and 6. */
static void launch_signal(struct cuda_stream *stream, const struct concat_mla_args *args, struct page page)
{
    char name[CONCAT_MLA_NAME_BYTES];
    struct concat_mla_plan plan;
    struct concat_mla_launch piece;
    struct concat_mla_signal signal = {.end = {{page.address, page.address + 8}, {5, 6}}};
    concat_mla_plan_init(&plan, args, UINT64_C(1) << 32);
    concat_mla_plan_next(&plan, &piece);
    concat_mla_signal_name(piece.range.vector_bytes, name);
    void *parameters[] = {&piece.args, &piece.range, &signal};
    assert_int_equal(launch(stream, name, 1, concat_mla_signal_threads(&piece), parameters), OK);
    assert_memory_equal(page.host, signal.end.value, sizeof(signal.end.value));
}

struct shape {
    unsigned dim0;
    unsigned dim1;
    unsigned a_bytes;
    unsigned b_bytes;
    unsigned shift; /* of every operand's address */
    bool reversed;  /* a runs backwards in i */
    bool broadcast; /* b is the same for all j */
    bool one_block; /* can copy it */
};

static void check_shape(struct cuda_stream *stream, const struct shape *shape)
{
    size_t rows = (size_t)shape->dim0 * shape->dim1;
    size_t out_bytes = rows * (shape->a_bytes + shape->b_bytes);
    cuda_address out = allocate(out_bytes + 16);
    cuda_address in = allocate(out_bytes + 16);
    unsigned char *expected = calloc(out_bytes, 1);
    assert_non_null(expected);
    for (size_t i = 0; i < out_bytes + 16; i++) {
        ((unsigned char *)memory_of(in))[i] = (unsigned char)(i * 31 + i / 257);
    }
    struct concat_mla_args args = {
        .out = memory_of(out + shape->shift),
        .a = memory_of(in + shape->shift),
        .b = memory_of(in + shape->shift + rows * shape->a_bytes),
        .dim0 = shape->dim0,
        .dim1 = shape->dim1,
        .out_stride0 = (long long)shape->dim1 * (shape->a_bytes + shape->b_bytes),
        .out_stride1 = shape->a_bytes + shape->b_bytes,
        .a_stride0 = (long long)shape->dim1 * shape->a_bytes,
        .a_stride1 = shape->a_bytes,
        .b_stride0 = (long long)(shape->broadcast ? 1 : shape->dim1) * shape->b_bytes,
        .b_stride1 = shape->broadcast ? 0 : shape->b_bytes,
        .a_bytes = shape->a_bytes,
        .b_bytes = shape->b_bytes,
    };
    if (shape->reversed) {
        args.a = (const char *)args.a + (shape->dim0 - 1) * args.a_stride0;
        args.a_stride0 = -args.a_stride0;
    }
    struct page page = register_page();
    for (int way = 0; way < (shape->one_block ? 3 : 2); way++) {
        memset(memory_of(out), 0xee, out_bytes + 16);
        if (way == 0) {
            assert_in_range(launch_pieces(stream, &args), out_bytes < 65536 ? 1 : 2, out_bytes);
        } else if (way == 1) {
            launch_many(stream, &args);
        } else {
            launch_signal(stream, &args, page);
        }
        assert_int_equal(fake_cuStreamQuery(stream), OK);
        struct concat_mla_args host = args;
        host.out = expected;
        concat_mla_host(&host, 0, rows, 0);
        assert_memory_equal(args.out, expected, out_bytes);
        assert_int_equal(((unsigned char *)args.out)[out_bytes], 0xee);
    }
    drop_page(page);
    free(expected);
    assert_true(fake_cuMemFree(out) == OK && fake_cuMemFree(in) == OK);
}

static void test_fake_cuda_kernels_copy_what_the_host_kernel_copies(void **state)
{
    (void)state;
    static const struct shape shapes[] = {
        {.dim0 = 1, .dim1 = 1, .a_bytes = 256, .b_bytes = 128, .one_block = true},
        {.dim0 = 40, .dim1 = 12, .a_bytes = 256, .b_bytes = 128, .broadcast = true},
        {.dim0 = 7, .dim1 = 5, .a_bytes = 24, .b_bytes = 8, .reversed = true, .one_block = true},
        {.dim0 = 7, .dim1 = 3, .a_bytes = 20, .b_bytes = 4, .shift = 4, .one_block = true},
        {.dim0 = 33, .dim1 = 2, .a_bytes = 34, .b_bytes = 2, .shift = 2, .reversed = true},
        {.dim0 = 3, .dim1 = 11, .a_bytes = 333, .b_bytes = 17, .shift = 1, .broadcast = true},
        {.dim0 = 5, .dim1 = 4, .a_bytes = 48, .b_bytes = 0, .one_block = true},
        {.dim0 = 2, .dim1 = 1, .a_bytes = 150000, .b_bytes = 50000, .shift = 8},
    };
    struct cuda_stream *stream = make_stream();
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        check_shape(stream, &shapes[i]);
    }
    assert_int_equal(fake_cuStreamDestroy(stream), OK);
}

/* Runs in a process of its own: such a context is lost. */
static int lose_device(bool misaligned)
{
    cuda_address in = allocate(4096);
    cuda_address out = allocate(misaligned ? 4096 : 4095);
    struct cuda_stream *stream = make_stream();
    struct concat_mla_launch launch;
    struct concat_mla_plan plan;
    struct concat_mla_args args = {
        .out = memory_of(out),
        .a = memory_of(in),
        .dim0 = 1,
        .dim1 = 1,
        .a_bytes = 4096 - (misaligned ? 16 : 0),
    };
    concat_mla_plan_init(&plan, &args, 1);
    concat_mla_plan_next(&plan, &launch);
    launch.args.out = (char *)launch.args.out + (misaligned ? 8 : 0);
    launch_piece(stream, &launch);
    int result = fake_cuStreamQuery(stream);
    return fake_cuMemFree(in) == result ? result : -1; /* the same for every call from now on */
}

static void test_fake_cuda_loses_the_device_as_a_true_one_does(void **state)
{
    (void)state;
    for (int misaligned = 0; misaligned < 2; misaligned++) {
        int status;
        pid_t pid = fork();
        if (pid == 0) {
            _exit(lose_device(misaligned) == (misaligned ? 716 : 700) ? 0 : 1);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_fake_cuda_is_what_the_service_loads),
        TEST(test_fake_cuda_fails_the_call_that_was_named),
        TEST(test_fake_cuda_needs_a_context),
        TEST(test_fake_cuda_runs_out_of_memory),
        TEST(test_fake_cuda_counts_for_other_processes),
        TEST(test_fake_cuda_opens_memory_of_another_process),
        TEST(test_fake_cuda_refuses_handles_of_its_own_process),
        TEST(test_fake_cuda_maps_chunks_side_by_side),
        TEST(test_fake_cuda_imports_only_its_own_descriptors),
        TEST(test_fake_cuda_keeps_host_and_device_addresses_apart),
        TEST(test_fake_cuda_stands_still_until_told),
        TEST(test_fake_cuda_waits_for_a_word),
        TEST(test_fake_cuda_kernels_copy_what_the_host_kernel_copies),
        TEST(test_fake_cuda_loses_the_device_as_a_true_one_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
