/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that vanishes: a file without seals that is cut after it was mapped, which mem_import would never take. Its
 * pages past the end raise SIGBUS.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "device.h"
#include "host_guard.h"
#include "host_memory.h"

#define PAGE ((size_t)sysconf(_SC_PAGESIZE))

/* Four pages, of which only the first is there. */
static struct device_memory make_cut(void)
{
    int fd = memfd_create("cut", MFD_CLOEXEC);
    struct device_memory memory = {.size_bytes = 4 * PAGE};
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)(4 * PAGE)), 0);
    memory.base = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(memory.base, MAP_FAILED);
    assert_int_equal(ftruncate(fd, (off_t)PAGE), 0);
    close(fd);
    return memory;
}

static struct device_memory make_whole(void)
{
    struct device_memory memory = {.size_bytes = 4 * PAGE};
    memory.base = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(memory.base, MAP_FAILED);
    return memory;
}

/* Rows of 64 + 64 bytes that fill the memory. */
static struct concat_mla_args make_args(const struct device_memory *out, const struct device_memory *in)
{
    return (struct concat_mla_args){
        .out = out->base,
        .a = in->base,
        .b = in->base + 64,
        .dim0 = 4 * PAGE / 128,
        .dim1 = 1,
        .out_stride0 = 128,
        .a_stride0 = 128,
        .b_stride0 = 128,
        .a_bytes = 64,
        .b_bytes = 64,
    };
}

/* In each test: cmocka takes SIGBUS for itself around every one of them. */
static void install(void)
{
    struct error err;
    assert_int_equal(host_guard_install(&err), MLACAT_OK);
}

static void test_host_guard_survives_missing_pages(void **state)
{
    (void)state;
    install();
    struct device_memory cut = make_cut();
    struct device_memory whole = make_whole();
    for (int round = 0; round < 8; round++) { /* more than once: the signal must not stay blocked */
        bool writes = round & 1;
        bool streaming = round & 2;
        struct concat_mla_args args = writes ? make_args(&cut, &whole) : make_args(&whole, &cut);
        uintptr_t fault = 0;
        args.b = round & 4 ? args.b : (const unsigned char *)args.b - 1; /* both ways to stream */
        args.b_bytes = round & 4 ? 64 : 63;
        assert_false(host_guard_copy(&args, 0, args.dim0, streaming, &fault));
        assert_in_range(fault, (uintptr_t)cut.base + PAGE, (uintptr_t)cut.base + 4 * PAGE - 1);
        assert_true(host_guard_copy(&args, 0, PAGE / 128, streaming, &fault)); /* the page that is there */
    }
    munmap(cut.base, 4 * PAGE);
    munmap(whole.base, 4 * PAGE);
}

static void *copy_cut(void *arg)
{
    struct device_memory *memory = arg;
    struct concat_mla_args args = make_args(&memory[0], &memory[1]);
    for (int i = 0; i < 200; i++) {
        uintptr_t fault;
        if (host_guard_copy(&args, 0, args.dim0, false, &fault)) {
            return NULL;
        }
    }
    return arg;
}

static void *copy_whole(void *arg)
{
    struct device_memory *memory = arg;
    struct concat_mla_args args = make_args(&memory[1], &memory[2]);
    for (int i = 0; i < 200; i++) {
        uintptr_t fault;
        if (!host_guard_copy(&args, 0, args.dim0, false, &fault)) {
            return NULL;
        }
    }
    return arg;
}

static void test_host_guard_is_per_thread(void **state)
{
    (void)state;
    install();
    struct device_memory bad[2] = {make_cut(), make_whole()};
    struct device_memory good[3] = {make_whole(), make_whole(), make_whole()};
    pthread_t threads[2];
    void *result;
    assert_int_equal(pthread_create(&threads[0], NULL, copy_cut, bad), 0);
    assert_int_equal(pthread_create(&threads[1], NULL, copy_whole, good), 0);
    assert_int_equal(pthread_join(threads[0], &result), 0);
    assert_ptr_equal(result, bad);
    assert_int_equal(pthread_join(threads[1], &result), 0);
    assert_ptr_equal(result, good);
}

/* Runs `body` in a child, which must die of SIGBUS. */
static void assert_dies_of_sigbus(void (*body)(void))
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        body();
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGBUS);
}

static void read_missing_page(void)
{
    struct device_memory cut = make_cut();
    *(volatile unsigned char *)(cut.base + 2 * PAGE) = 1;
}

static void read_missing_page_after_a_copy(void)
{
    struct device_memory cut = make_cut();
    struct device_memory whole = make_whole();
    struct concat_mla_args args = make_args(&whole, &cut);
    uintptr_t fault;
    host_guard_copy(&args, 0, 1, false, &fault);
    host_guard_copy(&args, 0, args.dim0, false, &fault);
    *(volatile unsigned char *)(cut.base + 2 * PAGE) = 1;
}

static void send_it_to_ourselves(void)
{
    kill(getpid(), SIGBUS);
}

/* From a timer, in the middle of a copy that would take hours: all its rows go to one place. */
static void get_it_during_a_copy(void)
{
    struct device_memory out = make_whole();
    struct device_memory in = make_whole();
    struct concat_mla_args args = make_args(&out, &in);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGBUS};
    const struct itimerspec soon = {.it_value = {.tv_nsec = 5000000}};
    timer_t timer;
    uintptr_t fault;
    args.dim0 = 1ull << 40;
    args.out_stride0 = args.a_stride0 = args.b_stride0 = 0;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &soon, NULL) == 0) {
        host_guard_copy(&args, 0, args.dim0, false, &fault);
    }
}

static void test_host_guard_leaves_other_faults_alone(void **state)
{
    (void)state;
    install();
    assert_dies_of_sigbus(read_missing_page);
    assert_dies_of_sigbus(read_missing_page_after_a_copy);
    assert_dies_of_sigbus(send_it_to_ourselves);
    assert_dies_of_sigbus(get_it_during_a_copy);
}

/* Through the device: the call ends with what happened, the next one works. */
static void test_device_host_reports_lost_memory(void **state)
{
    (void)state;
    struct device *device;
    struct device_info info;
    struct device_stream *stream;
    struct device_completion done[2];
    struct error err;
    struct device_memory cut = make_cut();
    struct device_memory whole = make_whole();
    assert_int_equal(device_host_ops.open("host", &device, &info, &err), DEVICE_OK);
    uint64_t fence = 0;
    uint64_t told = 0;
    const struct device_words words = {.fence = &fence, .done = &told};
    assert_int_equal(device_host_ops.stream_open(device, &words, &stream, &err), MLACAT_OK);
    struct device_call call;
    memset(&call, 0, sizeof(call));
    call.plan = (struct op_plan){
        .op = OP_CONCAT_MLA_K,
        .dim0 = 4 * PAGE / 128,
        .dim1 = 1,
        .width_bytes = {128, 128, 0},
        .stride_bytes = {{128, 0}, {128, 0}, {0, 0}},
        .copy = {true, true, false},
    };
    call.memory[OP_OUT] = &whole;
    call.memory[OP_FIRST] = call.memory[OP_SECOND] = &cut;
    call.cookie = &cut;
    call.sequence = 1;
    call.tell_done = true;
    assert_int_equal(device_host_ops.submit(stream, &call, &(uint32_t){1}, &err), DEVICE_OK);
    call.plan.dim0 = PAGE / 128;
    call.cookie = &whole;
    call.sequence = 2;
    call.tell_done = false;
    assert_int_equal(device_host_ops.submit(stream, &call, &(uint32_t){1}, &err), DEVICE_OK);
    int nr = 0;
    while (nr == 0) {
        nr = device_host_ops.poll(stream, done, 2, &err);
    }
    assert_int_equal(nr, 1); /* the fence passes a failed call only after it was told */
    assert_int_equal(fence, 0);
    assert_int_equal(told, 1);
    while (nr < 2) {
        nr += device_host_ops.poll(stream, done + nr, 2 - nr, &err);
    }
    assert_int_equal(fence, 2);
    assert_ptr_equal(done[0].cookie, &cut);
    assert_int_equal(done[0].error.code, MLACAT_DATA_LOSS);
    assert_int_equal(done[0].error.scope, MLACAT_SCOPE_SESSION);
    assert_non_null(strstr(done[0].error.message, "k_nope"));
    assert_ptr_equal(done[1].cookie, &whole);
    assert_int_equal(done[1].error.code, MLACAT_OK);
    device_host_ops.stream_close(stream);
    device_host_ops.close(device);
    munmap(cut.base, 4 * PAGE);
    munmap(whole.base, 4 * PAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_host_guard_survives_missing_pages),
        cmocka_unit_test(test_host_guard_is_per_thread),
        cmocka_unit_test(test_host_guard_leaves_other_faults_alone),
        cmocka_unit_test(test_device_host_reports_lost_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
