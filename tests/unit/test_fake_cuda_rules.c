/* SPDX-License-Identifier: Apache-2.0 */
/* What the fake CUDA driver aborts a daemon for, and what it lets pass. Each case is a process of its own. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "concat_mla_args.h"
#include "fake_cuda.h"

#define OK CUDA_RESULT_OK

static struct cuda_context *context;
static struct cuda_module *module;
static struct cuda_function *function;
static struct cuda_function *many_function;
static struct cuda_function *signal_function;
static struct cuda_function *gated_functions[3]; /* gate, copy, tail */
static struct cuda_stream *stream;
static cuda_address memory[3];
static void *page;

/* The child's checks: cmocka's would return into the parent's tests. */
static void must(int result)
{
    if (result != OK) {
        fprintf(stderr, "a call of the case itself failed: %d\n", result);
        _exit(2);
    }
}

static int launch(unsigned grid, unsigned units)
{
    struct concat_mla_args args = {
        .out = (void *)(uintptr_t)memory[0], .a = (void *)(uintptr_t)memory[1], .dim0 = 1, .dim1 = 1, .a_bytes = 16};
    struct concat_mla_range range = {.units = units, .row_multiplier = 1u << 31, .row_shift = 31};
    void *parameters[] = {&args, &range};
    return fake_cuLaunchKernel(function, grid, 1, 1, 128, 1, 1, 0, stream, parameters, NULL);
}

/* Two calls of so many units; the first one has `blocks` of the grid. */
static int launch_many(unsigned blocks, unsigned grid, unsigned units)
{
    struct concat_mla_many_args many = {.first_block = {0, blocks}};
    void *parameters[] = {&many};
    for (int call = 0; call < 2; call++) {
        many.args[call] = (struct concat_mla_args){.out = (void *)(uintptr_t)memory[call],
                                                   .a = (void *)(uintptr_t)memory[call],
                                                   .dim0 = 1,
                                                   .dim1 = 1,
                                                   .a_bytes = 16};
        many.range[call] =
            (struct concat_mla_range){.units = units, .row_multiplier = 1u << 31, .row_shift = 31, .vector_bytes = 16};
    }
    for (int call = 2; call < CONCAT_MLA_MANY_CALLS; call++) {
        many.first_block[call] = UINT32_MAX;
    }
    return fake_cuLaunchKernel(many_function, grid, 1, 1, CONCAT_MLA_MANY_THREADS, 1, 1, 0, stream, parameters, NULL);
}

static int launch_signal(unsigned grid, unsigned threads, unsigned units, cuda_address word, uint64_t wait_ns)
{
    struct concat_mla_args args = {
        .out = (void *)(uintptr_t)memory[0], .a = (void *)(uintptr_t)memory[1], .dim0 = 1, .dim1 = 1, .a_bytes = 16};
    struct concat_mla_range range = {.units = units, .row_multiplier = 1u << 31, .row_shift = 31};
    struct concat_mla_signal signal = {.end = {.address = {word}, .value = {1}},
                                       .gate = {.address = wait_ns ? memory[2] : 0, .wait_ns = wait_ns}};
    void *parameters[] = {&args, &range, &signal};
    return fake_cuLaunchKernel(signal_function, grid, 1, 1, threads, 1, 1, 0, stream, parameters, NULL);
}

static int launch_behind(struct cuda_function *behind, unsigned threads, void **parameters)
{
    const struct cuda_launch_attribute attribute = {.id = CUDA_LAUNCH_SERIALIZED_BY_PROGRAM,
                                                    .value = {.serialized_by_program = 1}};
    const struct cuda_launch_config config = {.grid_x = 1,
                                              .grid_y = 1,
                                              .grid_z = 1,
                                              .block_x = threads,
                                              .block_y = 1,
                                              .block_z = 1,
                                              .stream = stream,
                                              .attributes = &attribute,
                                              .attributes_nr = 1};
    return fake_cuLaunchKernelEx(&config, behind, parameters, NULL);
}

/* All three, for one vector; the word is where the tail tells the end. */
static int launch_gated(unsigned threads, uint64_t wait_ns, uint64_t copy_number, uint64_t tail_number)
{
    struct concat_mla_args args = {
        .out = (void *)(uintptr_t)memory[0], .a = (void *)(uintptr_t)memory[1], .dim0 = 1, .dim1 = 1, .a_bytes = 16};
    struct concat_mla_range range = {.units = 1, .row_multiplier = 1u << 31, .row_shift = 31};
    struct concat_mla_gate gate = {.address = wait_ns ? memory[2] : 0, .wait_ns = wait_ns};
    struct concat_mla_end end = {.address = {memory[2] + 8}, .value = {1}};
    struct concat_mla_ticket ticket = {.address = memory[2] + 16, .number = 5};
    int result =
        fake_cuLaunchKernel(gated_functions[0], 1, 1, 1, threads, 1, 1, 0, stream, (void *[]){&gate, &ticket}, NULL);
    ticket.number = copy_number;
    result |= launch_behind(gated_functions[1], 128, (void *[]){&args, &range, &ticket});
    ticket.number = tail_number;
    return result | launch_behind(gated_functions[2], threads, (void *[]){&end, &ticket});
}

/* A daemon at READY, with everything that it needs. */
static void start_daemon(const char *words)
{
    fake_cuda_behave(words);
    must(fake_cuInit(0));
    must(fake_cuDevicePrimaryCtxRetain(&context, 0));
    must(fake_cuCtxSetCurrent(context));
    must(fake_cuModuleLoadDataEx(&module, "--gpu", 0, NULL, NULL));
    must(fake_cuModuleGetFunction(&function, module, "concat_mla_16"));
    must(fake_cuModuleGetFunction(&many_function, module, "concat_mla_many"));
    must(fake_cuModuleGetFunction(&signal_function, module, "concat_mla_16_signal"));
    must(fake_cuModuleGetFunction(&gated_functions[0], module, "concat_mla_gate"));
    must(fake_cuModuleGetFunction(&gated_functions[1], module, "concat_mla_16_gated"));
    must(fake_cuModuleGetFunction(&gated_functions[2], module, "concat_mla_tail"));
    must(fake_cuStreamCreate(&stream, CUDA_STREAM_NON_BLOCKING));
    for (int i = 0; i < 3; i++) {
        must(fake_cuMemAlloc(&memory[i], 4096));
    }
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(fake_cuMemHostRegister(page, 4096, CUDA_HOST_REGISTER_DEVICE_MAP));
    must(launch(1, 0));
    must(launch_many(1, 2, 1));
    must(launch_signal(1, 32, 0, 0, 0));
    must(launch_gated(CONCAT_MLA_GATE_THREADS, 0, 9, 9));
    must(fake_cuStreamSynchronize(stream));
    fake_cuda_ready();
}

/* Runs `body` in a process of its own. NULL: it goes well; else the text in the line that it dies with. */
static void expect(void (*body)(void), const char *text)
{
    char output[512] = "";
    int pipe_fds[2];
    int status;
    assert_int_equal(pipe(pipe_fds), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(pipe_fds[1], STDERR_FILENO);
        start_daemon("daemon");
        body();
        _exit(0);
    }
    close(pipe_fds[1]);
    ssize_t length = 0;
    for (ssize_t got = 1; got > 0 && length<(ssize_t)sizeof(output) - 1; length += got> 0 ? got : 0) {
        got = read(pipe_fds[0], output + length, sizeof(output) - 1 - (size_t)length);
    }
    close(pipe_fds[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!text) {
        assert_string_equal(output, "");
        assert_int_equal(status, 0);
        return;
    }
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_int_equal(strncmp(output, "fake driver: ", 13), 0);
    if (!strstr(output, text)) {
        fail_msg("\"%s\" is not in \"%s\"", text, output);
    }
}

/* ---- waits ---- */

static void wait_value_64(void)
{
    fake_cuStreamWaitValue64(stream, memory[0], 1, 0);
}

static void wait_value_32(void)
{
    fake_cuStreamWaitValue32(stream, memory[0], 1, 0);
}

static void wait_event(void)
{
    fake_cuStreamWaitEvent(stream, NULL, 0);
}

static void host_function(void)
{
    fake_cuLaunchHostFunc(stream, NULL, NULL);
}

static void test_fake_cuda_rules_the_device_never_waits(void **state)
{
    (void)state;
    expect(wait_value_64, "cuStreamWaitValue64");
    expect(wait_value_32, "cuStreamWaitValue32");
    expect(wait_event, "cuStreamWaitEvent");
    expect(host_function, "cuLaunchHostFunc");
}

/* ---- after READY ---- */

static void load_module(void)
{
    fake_cuModuleLoadDataEx(&module, "--gpu", 0, NULL, NULL);
}

static void unload_module(void)
{
    fake_cuModuleUnload(module);
}

static void unload_without_streams(void)
{
    must(fake_cuStreamDestroy(stream));
    must(fake_cuModuleUnload(module));
}

static void first_launch(void)
{
    must(fake_cuModuleGetFunction(&function, module, "concat_mla_8"));
    launch(1, 0);
}

static void synchronize(void)
{
    fake_cuStreamSynchronize(stream);
}

static void first_import_is_ready(void)
{
    struct cuda_ipc_handle handle = {{0}};
    cuda_address address;
    fake_cuda_behave("daemon");
    load_module();
    fake_cuIpcOpenMemHandle(&address, handle, CUDA_IPC_LAZY_PEER_ACCESS);
    load_module();
}

static void test_fake_cuda_rules_after_ready(void **state)
{
    (void)state;
    expect(load_module, "cuModuleLoadDataEx after READY");
    expect(first_import_is_ready, "cuModuleLoadDataEx after READY");
    expect(unload_module, "cuModuleUnload after READY");
    expect(unload_without_streams, NULL);
    expect(first_launch, "first launch of a kernel after READY");
    expect(synchronize, "cuStreamSynchronize after READY");
}

/* ---- closing ---- */

/* In place of libc's, for the fake driver too: the machine may stop a process between any two calls, but not this
 * clock. */
static _Atomic uint64_t stopped_ns; /* 0: it goes */

__attribute__((visibility("default"))) int clock_gettime(clockid_t clock, struct timespec *time)
{
    uint64_t now_ns = stopped_ns;
    if (now_ns == 0) {
        return (int)syscall(SYS_clock_gettime, clock, time);
    }
    *time = (struct timespec){.tv_sec = (time_t)(now_ns / 1000000000), .tv_nsec = (long)(now_ns % 1000000000)};
    return 0;
}

static void pass_ms(uint64_t ms)
{
    stopped_ns += ms * 1000000;
}

/* Stops the clock. The first kernel after a quiet time counts when it is 10 ms old. */
static void be_busy(void)
{
    struct timespec now;
    must(clock_gettime(CLOCK_MONOTONIC, &now));
    stopped_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    must(launch(1, 0));
    pass_ms(11);
}

static void free_another(void)
{
    cuda_address another;
    must(fake_cuMemAlloc(&another, 4096));
    must(fake_cuMemFree(another));
}

/* Before the kernel is so old that it is quiet again. The first close has its pace. */
static void be_hasty(uint32_t closes)
{
    be_busy();
    free_another();
    for (uint32_t i = 0; i < closes; i++) {
        pass_ms(2);
        free_another();
    }
}

static void close_fast(void)
{
    be_hasty(FAKE_HASTE_MAX + 1);
}

static void close_and_unregister_fast(void)
{
    be_hasty(FAKE_HASTE_MAX);
    fake_cuMemHostUnregister(page);
}

static void close_at_pace(void)
{
    be_hasty(FAKE_HASTE_MAX);
    for (int i = 0; i <= FAKE_HASTE_MAX; i++) {
        must(launch(1, 0));
        pass_ms(10);
        free_another();
    }
    pass_ms(10);
    must(fake_cuMemHostUnregister(page));
}

static void close_fast_without_streams(void)
{
    must(fake_cuStreamDestroy(stream));
    must(fake_cuMemFree(memory[0]));
    must(fake_cuMemFree(memory[1]));
    must(fake_cuMemHostUnregister(page));
}

static void *free_second(void *unused)
{
    must(fake_cuCtxSetCurrent(context));
    fake_cuMemFree(memory[1]);
    return unused;
}

static void close_on_two_threads(void)
{
    pthread_t thread;
    be_busy();
    must(fake_cuMemFree(memory[0]));
    pass_ms(10);
    must(pthread_create(&thread, NULL, free_second, NULL));
    must(pthread_join(thread, NULL));
}

static void test_fake_cuda_rules_of_closing(void **state)
{
    (void)state;
    expect(close_fast, "cuMemFree less than 10 ms");
    expect(close_and_unregister_fast, "cuMemHostUnregister less than 10 ms");
    expect(close_at_pace, NULL);
    expect(close_fast_without_streams, NULL);
    expect(close_on_two_threads, "cuMemFree on another thread");
}

/* ---- launches ---- */

static void launch_too_few_blocks(void)
{
    launch(1, 257);
}

static void launch_enough_blocks(void)
{
    memory[0] = memory[1]; /* rows of stride 0: in its place */
    must(launch(2, 257));
}

static void launch_for_too_long(void)
{
    launch(1u << 24, 1u << 30);
}

static void launch_many_with_too_few_blocks(void)
{
    launch_many(2, 3, 257);
}

static void launch_many_without_gaps(void)
{
    must(launch_many(2, 4, 257));
}

static void launch_signal_with_two_blocks(void)
{
    launch_signal(2, 128, 1, 0, 0);
}

static void launch_signal_with_too_many_threads(void)
{
    launch_signal(1, CONCAT_MLA_SIGNAL_THREADS + 128, 1, 0, 0);
}

static void launch_signal_with_half_a_stretch(void)
{
    launch_signal(1, 64, 1, 0, 0);
}

static void launch_signal_with_too_few_threads(void)
{
    launch_signal(1, 256, 513, 0, 0);
}

static void launch_signal_that_waits_for_long(void)
{
    launch_signal(1, 128, 1, 0, 2000000);
}

static void launch_signal_with_a_host_address(void)
{
    must(launch_signal(1, 128, 1, (uintptr_t)page, 0));
    must(launch_signal(1, 128, 1, 0, 0) == 700 ? OK : CUDA_RESULT_NOT_READY);
}

static void launch_gate_that_waits_for_long(void)
{
    launch_gated(CONCAT_MLA_GATE_THREADS, 2000000, 5, 5);
}

static void launch_gate_of_more_than_a_warp(void)
{
    launch_gated(64, 0, 5, 5);
}

/* The copy and the tail happen only with the number that the gate has stamped. */
static void launch_gated_with_numbers(void)
{
    unsigned char *bytes[3];
    for (int i = 0; i < 3; i++) {
        bytes[i] = (unsigned char *)(uintptr_t)memory[i];
    }
    bytes[1][0] = 7;
    must(launch_gated(CONCAT_MLA_GATE_THREADS, 0, 4, 4));
    must(bytes[0][0] == 0 && bytes[2][8] == 0 ? OK : 1);
    must(launch_gated(CONCAT_MLA_GATE_THREADS, 0, 5, 4));
    must(bytes[0][0] == 7 && bytes[2][8] == 0 ? OK : 1);
    must(launch_gated(CONCAT_MLA_GATE_THREADS, 0, 5, 5));
    must(bytes[2][8] == 1 ? OK : 1);
}

static void launch_gated_in_its_turn(void)
{
    fake_cuLaunchKernel(gated_functions[1], 1, 1, 1, 128, 1, 1, 0, stream, (void *[]){NULL}, NULL);
}

static void launch_plain_before_its_turn(void)
{
    launch_behind(function, 128, (void *[]){NULL});
}

/* A program for an older GPU has none of these kernels. */
static void find_gate_of_an_older_gpu(void)
{
    fake_cuda_behave("");
    must(fake_cuModuleLoadDataEx(&module, "--gpu-architecture=sm_80", 0, NULL, NULL));
    must(fake_cuModuleGetFunction(&function, module, "concat_mla_16"));
    must(fake_cuModuleGetFunction(&function, module, "concat_mla_gate") == CUDA_RESULT_NOT_FOUND ? OK : 1);
}

/* Each of them, with 160 MB, would be short enough. */
static void launch_many_for_too_long(void)
{
    launch_many(20u << 10, 40u << 10, 5u << 20);
}

static void test_fake_cuda_rules_of_launches(void **state)
{
    (void)state;
    expect(launch_too_few_blocks, "does not cover 257 units");
    expect(launch_enough_blocks, NULL);
    expect(launch_for_too_long, "longer than 1 ms");
    expect(launch_many_with_too_few_blocks, "a launch of 1 blocks of 128 threads does not cover 257 units");
    expect(launch_many_without_gaps, NULL);
    expect(launch_many_for_too_long, "longer than 1 ms");
    expect(launch_signal_with_two_blocks, "concat_mla_16_signal was launched with 2 blocks of 128 threads");
    expect(launch_signal_with_too_many_threads, "1 blocks of 896 threads");
    expect(launch_signal_with_half_a_stretch, "1 blocks of 64 threads");
    expect(launch_signal_with_too_few_threads, "a launch of 2 blocks of 128 threads does not cover 513 units");
    expect(launch_signal_that_waits_for_long, "to wait 2000000 ns for a word");
    expect(launch_signal_with_a_host_address, NULL);
}

static void test_fake_cuda_rules_of_launches_behind_a_gate(void **state)
{
    (void)state;
    expect(launch_gate_that_waits_for_long, "to wait 2000000 ns for a word");
    expect(launch_gate_of_more_than_a_warp, "a gate or a tail was launched with 1 blocks of 64 threads");
    expect(launch_gated_with_numbers, NULL);
    expect(launch_gated_in_its_turn, "begin when that has ended");
    expect(launch_plain_before_its_turn, "does not wait for that itself");
    expect(find_gate_of_an_older_gpu, NULL);
}

/* ---- no daemon, and no sense ---- */

static void be_a_client(void)
{
    fake_cuda_behave("");
    load_module();
    must(fake_cuMemFree(memory[0]));
    must(fake_cuMemFree(memory[1]));
    must(fake_cuStreamSynchronize(stream));
}

static void behave_badly(void)
{
    fake_cuda_behave("daemno");
}

static void fail_what_is_not_there(void)
{
    fake_cuda_behave("fail=cuNothing:1:2");
}

static void test_fake_cuda_rules_are_for_daemons_only(void **state)
{
    (void)state;
    expect(be_a_client, NULL);
}

static void test_fake_cuda_refuses_words_that_mean_nothing(void **state)
{
    (void)state;
    expect(behave_badly, "\"daemno\" is no behaviour");
    expect(fail_what_is_not_there, "no entry point cuNothing");
}

/* ---- closing while the device works ---- */

static struct timespec start;

static void must_be_30_ms_later(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long ms = (now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000;
    must(ms >= 30 ? OK : CUDA_RESULT_NOT_READY);
}

/* Launches as soon as the other thread is closing. */
static void *launch_more(void *unused)
{
    must(fake_cuCtxSetCurrent(context));
    while (fake_cuda_calls("cuMemFree") == 0) {
        sched_yield();
    }
    must(launch(1, 0));
    must_be_30_ms_later();
    return unused;
}

/* A kernel takes 30 ms: closing waits for it, and launches wait for the closing. */
static void close_while_a_kernel_runs(void)
{
    pthread_t thread;
    fake_cuda_behave("delay_us=30000");
    clock_gettime(CLOCK_MONOTONIC, &start);
    must(launch(1, 0));
    must(pthread_create(&thread, NULL, launch_more, NULL));
    must(fake_cuMemFree(memory[0]));
    must_be_30_ms_later();
    must(pthread_join(thread, NULL));
}

static void test_fake_cuda_close_waits_for_kernels(void **state)
{
    (void)state;
    expect(close_while_a_kernel_runs, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fake_cuda_rules_the_device_never_waits),
        cmocka_unit_test(test_fake_cuda_rules_after_ready),
        cmocka_unit_test(test_fake_cuda_rules_of_closing),
        cmocka_unit_test(test_fake_cuda_rules_of_launches),
        cmocka_unit_test(test_fake_cuda_rules_of_launches_behind_a_gate),
        cmocka_unit_test(test_fake_cuda_rules_are_for_daemons_only),
        cmocka_unit_test(test_fake_cuda_refuses_words_that_mean_nothing),
        cmocka_unit_test(test_fake_cuda_close_waits_for_kernels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
