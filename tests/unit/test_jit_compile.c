/* SPDX-License-Identifier: Apache-2.0 */
/* The compile helper and its other end, with a library in place of NVRTC. This program is its own helper. */
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "clock.h"
#include "cuda_jit.h"
#include "jit_compile.h"
#include "jit_folder.h"

#define LIMIT_MS 20000
#define SHORT_LIMIT_MS 300

static struct jit_compiler compiler;
static struct jit_compiled image;
static struct error err;
static int fds_before;

static int free_fd(void)
{
    int fd = dup(STDERR_FILENO);
    close(fd);
    return fd;
}

static int set_up(void **state)
{
    (void)state;
    jit_folder_make();
    unsetenv("MLACAT_FAKE_NVRTC");
    setenv("MLACAT_FAKE_NVRTC_CALLS", jit_folder_file("calls"), 1);
    memset(&err, 0, sizeof(err));
    memset(&image, 0, sizeof(image));
    fds_before = free_fd();
    return 0;
}

/* Whatever happened: no process, no descriptor is left. */
static int tear_down(void **state)
{
    (void)state;
    jit_compiler_stop(&compiler);
    free(image.bytes);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(free_fd(), fds_before);
    jit_folder_remove();
    return 0;
}

static const struct jit_text text = {
    .source_name = "a.cu",
    .source = "twelve bytes",
    .header_name = "a.h",
    .header = "four",
    .options = {"--gpu-architecture=sm_90", "-DX=Y(1,2)"},
    .options_nr = 2,
};

static void start(void)
{
    assert_int_equal(jit_compiler_start(&compiler, FAKE_NVRTC, LIMIT_MS, &err), MLACAT_OK);
}

static void assert_error(enum mlacat_status status, const char *message)
{
    assert_int_equal(err.code, status);
    if (!strstr(err.message, message)) {
        fail_msg("\"%s\" is not in \"%s\"", message, err.message);
    }
}

static void test_jit_compile_greets_with_what_nvrtc_knows(void **state)
{
    (void)state;
    setenv("MLACAT_FAKE_NVRTC", "version=12040,oldest=80", 1);
    start();
    assert_int_equal(compiler.nvrtc_version, 12040);
    assert_int_equal(compiler.archs_nr, 2);
    assert_int_equal(compiler.archs[0], 80);
    assert_int_equal(compiler.archs[1], 90);
}

static void test_jit_compile_passes_everything_on(void **state)
{
    (void)state;
    static const char expected[] = "--gpu-architecture=sm_90\n-DX=Y(1,2)\nsource=12 header=4";
    start();
    assert_int_equal(jit_compiler_run(&compiler, &text, &image, &err), MLACAT_OK);
    assert_false(image.ptx);
    assert_int_equal(image.bytes_nr, sizeof(expected) - 1);
    assert_memory_equal(image.bytes, expected, sizeof(expected) - 1);
}

static void test_jit_compile_gives_ptx_with_its_end(void **state)
{
    (void)state;
    struct jit_text virtual = text;
    virtual.options[0] = "--gpu-architecture=compute_90";
    start();
    assert_int_equal(jit_compiler_run(&compiler, &virtual, &image, &err), MLACAT_OK);
    assert_true(image.ptx);
    assert_int_equal(strlen(image.bytes) + 1, image.bytes_nr);
}

/* More than the socket holds: both ends must go on while the other is busy. */
static void test_jit_compile_of_a_long_text(void **state)
{
    (void)state;
    enum { BYTES = 2000000 };
    struct jit_text longer = text;
    char *source = malloc(BYTES + 1);
    assert_non_null(source);
    memset(source, ' ', BYTES);
    source[BYTES] = '\0';
    longer.source = source;
    start();
    assert_int_equal(jit_compiler_run(&compiler, &longer, &image, &err), MLACAT_OK);
    assert_memory_equal((char *)image.bytes + image.bytes_nr - 23, "source=2000000 header=4", 23);
    free(source);
}

static void test_jit_compile_without_nvrtc(void **state)
{
    (void)state;
    assert_int_equal(jit_compiler_start(&compiler, "/nowhere/libnvrtc.so", LIMIT_MS, &err), MLACAT_UNAVAILABLE);
    assert_error(MLACAT_UNAVAILABLE, "/nowhere/libnvrtc.so");
    assert_int_equal(jit_compiler_start(&compiler, "libm.so.6", LIMIT_MS, &err), MLACAT_UNAVAILABLE);
    assert_error(MLACAT_UNAVAILABLE, "has no nvrtcVersion");
    setenv("MLACAT_FAKE_NVRTC", "dead", 1);
    assert_int_equal(jit_compiler_start(&compiler, FAKE_NVRTC, LIMIT_MS, &err), MLACAT_UNAVAILABLE);
    assert_error(MLACAT_UNAVAILABLE, "FAKE_ERROR");
}

static void test_jit_compile_has_a_time_limit(void **state)
{
    (void)state;
    setenv("MLACAT_FAKE_NVRTC", "hang", 1);
    start();
    uint64_t start_ns = clock_now_ns();
    compiler.limit_ms = SHORT_LIMIT_MS; /* for the compilation alone: to start may take long */
    compiler.deadline_ns = start_ns + SHORT_LIMIT_MS * UINT64_C(1000000);
    assert_int_equal(jit_compiler_run(&compiler, &text, &image, &err), MLACAT_DEADLINE_EXCEEDED);
    assert_error(MLACAT_DEADLINE_EXCEEDED, "longer than 300 ms");
    assert_true(clock_now_ns() - start_ns < LIMIT_MS / 2 * UINT64_C(1000000));
}

static void test_jit_compile_survives_a_crash(void **state)
{
    (void)state;
    setenv("MLACAT_FAKE_NVRTC", "crash", 1);
    start();
    assert_int_equal(jit_compiler_run(&compiler, &text, &image, &err), MLACAT_INTERNAL);
    assert_error(MLACAT_INTERNAL, "signal 6");
}

static void test_jit_compile_survives_a_helper_that_was_killed(void **state)
{
    (void)state;
    start();
    assert_int_equal(kill(compiler.helper, SIGKILL), 0);
    assert_int_equal(jit_compiler_run(&compiler, &text, &image, &err), MLACAT_INTERNAL);
    assert_error(MLACAT_INTERNAL, "signal 9");
}

static void test_jit_compile_tells_why_nvrtc_refused(void **state)
{
    (void)state;
    setenv("MLACAT_FAKE_NVRTC", "refuse", 1);
    start();
    assert_int_equal(jit_compiler_run(&compiler, &text, &image, &err), MLACAT_INVALID_ARGUMENT);
    assert_error(MLACAT_INVALID_ARGUMENT, "FAKE_ERROR_COMPILATION: first line of the log");
}

static void test_jit_compile_refuses_an_empty_image(void **state)
{
    (void)state;
    setenv("MLACAT_FAKE_NVRTC", "empty", 1);
    start();
    assert_int_equal(jit_compiler_run(&compiler, &text, &image, &err), MLACAT_INTERNAL);
    assert_error(MLACAT_INTERNAL, "0 bytes");
}

static void test_jit_compile_keeps_prints_out_of_the_image(void **state)
{
    (void)state;
    setenv("MLACAT_FAKE_NVRTC", "chatter", 1);
    start();
    assert_int_equal(jit_compiler_run(&compiler, &text, &image, &err), MLACAT_OK);
    assert_memory_equal(image.bytes, "--gpu", 5);
}

static void test_jit_compile_leaves_flags_of_the_environment_out(void **state)
{
    (void)state;
    size_t bytes_nr;
    setenv("NVRTC_APPEND_FLAGS", "-G", 1);
    start();
    assert_int_equal(jit_compiler_run(&compiler, &text, &image, &err), MLACAT_OK);
    unsetenv("NVRTC_APPEND_FLAGS");
    char *calls = jit_folder_read("calls", &bytes_nr);
    assert_string_equal(calls, "--gpu-architecture=sm_90 -DX=Y(1,2) append=\n");
    free(calls);
}

/* A daemon that is killed takes its helper along, in the middle of a compilation too. */
static void test_jit_compile_helper_dies_with_the_daemon(void **state)
{
    (void)state;
    int pids[2];
    int status;
    pid_t helper;
    setenv("MLACAT_FAKE_NVRTC", "hang", 1);
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    assert_int_equal(pipe2(pids, O_CLOEXEC), 0);
    pid_t daemon = fork();
    if (daemon == 0) {
        if (jit_compiler_start(&compiler, FAKE_NVRTC, LIMIT_MS, &err) == MLACAT_OK &&
            write(pids[1], &compiler.helper, sizeof(helper)) == (ssize_t)sizeof(helper)) {
            jit_compiler_run(&compiler, &text, &image, &err);
        }
        _exit(1);
    }
    assert_int_equal(read(pids[0], &helper, sizeof(helper)), (ssize_t)sizeof(helper));
    while (jit_folder_count("calls") == 0) { /* the compilation has not begun */
        sched_yield();
    }
    assert_int_equal(kill(daemon, SIGKILL), 0);
    assert_int_equal(waitpid(daemon, NULL, 0), daemon);
    assert_int_equal(waitpid(helper, &status, 0), helper);
    assert_true(WIFSIGNALED(status));
    close(pids[0]);
    close(pids[1]);
    prctl(PR_SET_CHILD_SUBREAPER, 0);
}

/* Runs a helper that gets `bytes` as its request. Returns its exit code; `failure` gets its answer. */
static int ask_helper(const void *bytes, size_t bytes_nr, struct error *failure)
{
    struct jit_packet packet;
    struct jit_greeting greeting;
    int fds[2];
    int status;
    memset(failure, 0, sizeof(*failure));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    pid_t helper = fork();
    if (helper == 0) {
        char *const argv[] = {(char[]){"mlacatd"}, (char[]){JIT_HELPER_ARGUMENT}, (char[]){FAKE_NVRTC}, NULL};
        dup2(fds[1], STDIN_FILENO);
        dup2(fds[1], STDOUT_FILENO);
        close(fds[0]);
        close(fds[1]);
        _exit(jit_helper_main(3, argv));
    }
    close(fds[1]);
    assert_int_equal(send(fds[0], bytes, bytes_nr, MSG_NOSIGNAL), (ssize_t)bytes_nr);
    assert_int_equal(shutdown(fds[0], SHUT_WR), 0);
    assert_int_equal(recv(fds[0], &packet, sizeof(packet), MSG_WAITALL), (ssize_t)sizeof(packet));
    assert_int_equal(packet.kind, JIT_GREETING);
    assert_int_equal(recv(fds[0], &greeting, sizeof(greeting), MSG_WAITALL), (ssize_t)sizeof(greeting));
    if (recv(fds[0], &packet, sizeof(packet), MSG_WAITALL) == (ssize_t)sizeof(packet)) {
        assert_int_equal(packet.kind, JIT_FAILED);
        assert_int_equal(recv(fds[0], failure, sizeof(*failure), MSG_WAITALL), (ssize_t)sizeof(*failure));
    }
    assert_int_equal(waitpid(helper, &status, 0), helper);
    close(fds[0]);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_jit_compile_helper_refuses_a_malformed_request(void **state)
{
    (void)state;
    struct {
        struct jit_packet packet;
        char payload[8];
    } request = {.packet = {.magic = JIT_PACKET_MAGIC, .kind = JIT_REQUEST, .bytes_nr = 8}, .payload = "a\0b\0c\0d"};
    const struct jit_packet packet = request.packet;
    assert_int_equal(ask_helper("", 0, &err), 0); /* nothing: only the greeting was wanted */
    request.payload[5] = 'x';                     /* three strings */
    assert_int_equal(ask_helper(&request, sizeof(request), &err), 1);
    assert_error(MLACAT_INTERNAL, "malformed");
    request.payload[5] = '\0';
    request.payload[7] = 'x'; /* the last one does not end */
    assert_int_equal(ask_helper(&request, sizeof(request), &err), 1);
    assert_error(MLACAT_INTERNAL, "malformed");
    request.packet.bytes_nr = 9; /* more than comes */
    assert_int_equal(ask_helper(&request, sizeof(request), &err), 1);
    assert_error(MLACAT_INTERNAL, "malformed");
    request.packet.bytes_nr = UINT64_MAX;
    assert_int_equal(ask_helper(&request, sizeof(request), &err), 1);
    assert_error(MLACAT_INTERNAL, "malformed");
    request.packet = packet;
    request.packet.kind = JIT_GREETING;
    assert_int_equal(ask_helper(&request, sizeof(request), &err), 1);
    assert_error(MLACAT_INTERNAL, "malformed");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(int argc, char *argv[])
{
    const struct CMUnitTest tests[] = {
        TEST(test_jit_compile_greets_with_what_nvrtc_knows),
        TEST(test_jit_compile_passes_everything_on),
        TEST(test_jit_compile_gives_ptx_with_its_end),
        TEST(test_jit_compile_of_a_long_text),
        TEST(test_jit_compile_without_nvrtc),
        TEST(test_jit_compile_has_a_time_limit),
        TEST(test_jit_compile_survives_a_crash),
        TEST(test_jit_compile_survives_a_helper_that_was_killed),
        TEST(test_jit_compile_tells_why_nvrtc_refused),
        TEST(test_jit_compile_refuses_an_empty_image),
        TEST(test_jit_compile_keeps_prints_out_of_the_image),
        TEST(test_jit_compile_leaves_flags_of_the_environment_out),
        TEST(test_jit_compile_helper_dies_with_the_daemon),
        TEST(test_jit_compile_helper_refuses_a_malformed_request),
    };
    if (jit_is_helper(argc, argv)) {
        return jit_helper_main(argc, argv);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
