/* SPDX-License-Identifier: Apache-2.0 */
/* mlacatctl doctor, with and without a daemon, over the driver of tests/support/fake_cuda. */
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "ctl_program.h"
#include "fake_cuda.h"
#include "require.h"
#include "server.h"

#define UUID "GPU-fafafafa-fafa-fafa-fafa-fafafafafa00"
#define OTHER_UID 12345
#define VARIABLES_MAX 4

/* Runs "VARIABLE=VALUE ... mlacatctl doctor WORDS"; what it prints is in `out`. */
static void run_doctor(const char *environment, const struct server *server, const char *words, int status)
{
    char line[512];
    char *names[VARIABLES_MAX];
    char *before[VARIABLES_MAX];
    int nr = 0;
    snprintf(line, sizeof(line), "%s", environment);
    for (char *rest = line, *word; (word = strsep(&rest, " ")) != NULL && word[0] != '\0'; nr++) {
        char *value = strchr(word, '=');
        REQUIRE(nr < VARIABLES_MAX && value != NULL);
        *value = '\0';
        names[nr] = word;
        before[nr] = getenv(word) != NULL ? strdup(getenv(word)) : NULL;
        setenv(word, value + 1, 1);
    }
    expect(server->socket, words, status);
    while (nr-- > 0) {
        if (before[nr] != NULL) {
            setenv(names[nr], before[nr], 1);
        } else {
            unsetenv(names[nr]);
        }
        free(before[nr]);
    }
}

/* The findings of the last run of run_checks. */
static json_t *findings;

static void run_checks(const char *environment, const struct server *server, int status)
{
    json_decref(findings);
    run_doctor(environment, server, "doctor --json", status);
    findings = parse_out();
    expect_keys(findings, "healthy checks");
    REQUIRE(json_is_true(json_object_get(findings, "healthy")) == (status == DONE));
}

/* Finding `check` has this state, says `text`, and says what to do exactly if something is wrong. */
static void expect_finding(const char *check, const char *state, const char *text)
{
    size_t index;
    json_t *finding;
    json_array_foreach(json_object_get(findings, "checks"), index, finding)
    {
        const char *name = json_string_value(json_object_get(finding, "check"));
        if (strcmp(name, check) != 0) {
            continue;
        }
        const char *found = json_string_value(json_object_get(finding, "found"));
        const char *advice = json_string_value(json_object_get(finding, "advice"));
        bool wrong = strcmp(state, "WARN") == 0 || strcmp(state, "FAIL") == 0;
        expect_keys(finding, "check state found advice");
        REQUIRE(strcmp(json_string_value(json_object_get(finding, "state")), state) == 0, "%s: %s", check, out);
        REQUIRE(strstr(found, text) != NULL, "\"%s\" is not in \"%s\"", text, found);
        REQUIRE((advice[0] != '\0') == wrong, "%s: advice \"%s\"", check, advice);
        return;
    }
    REQUIRE(false, "there is no check %s in %s", check, out);
}

/* ------------------------------------------------------------------------------------------------- what is around */

static char cache[64];

/* With the fake driver, for the daemon and for mlacatctl. */
static int setup_gpu(void **state)
{
    snprintf(cache, sizeof(cache), "/tmp/mlacat-test-XXXXXX");
    REQUIRE(mkdtemp(cache) != NULL);
    setenv("LD_LIBRARY_PATH", FAKE_FOLDER, 1);
    setenv("CACHE_DIRECTORY", cache, 1);
    setenv("CUDA_MPS_PIPE_DIRECTORY", "/nonexistent/mps", 1);
    struct server *server = calloc(1, sizeof(*server));
    *state = server;
    server_start(server, "device = " UUID "\n");
    return 0;
}

/* With the files in it, and folders that are empty. */
static void remove_folder(const char *path)
{
    DIR *folder = opendir(path);
    REQUIRE(folder != NULL, "%s", path);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        if (unlinkat(dirfd(folder), entry->d_name, 0) < 0) {
            unlinkat(dirfd(folder), entry->d_name, AT_REMOVEDIR);
        }
    }
    closedir(folder);
    REQUIRE(rmdir(path) == 0, "%s", path);
}

static int teardown_gpu(void **state)
{
    unsetenv("LD_LIBRARY_PATH");
    unsetenv("CACHE_DIRECTORY");
    unsetenv("CUDA_MPS_PIPE_DIRECTORY");
    remove_folder(cache);
    return server_teardown(state);
}

#define WITH_GPU(test) cmocka_unit_test_setup_teardown(test, setup_gpu, teardown_gpu)

static bool has_real_driver(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_LAZY);
    if (library != NULL) {
        dlclose(library);
    }
    return library != NULL;
}

/* ---------------------------------------------------------------------------------------------------- the service */

static void test_doctor_without_a_daemon(void **state)
{
    (void)state;
    struct server nobody = {.socket = "/nonexistent/socket"};
    run_checks("", &nobody, FAILED);
    expect_finding("socket", "FAIL", "/nonexistent/socket: No such file");
    expect_finding("connection", "SKIPPED", "there is no socket");
    expect_finding("device", "SKIPPED", "there is no socket");
    expect_finding("cpus", "SKIPPED", "no connection");
    expect_finding("cache", "SKIPPED", "no connection");
    snprintf(nobody.socket, sizeof(nobody.socket), "/etc/passwd");
    run_checks("", &nobody, FAILED);
    expect_finding("socket", "FAIL", "/etc/passwd is no socket");
}

static void test_doctor_without_a_gpu(void **state)
{
    struct server *server = *state;
    char text[32];
    if (has_real_driver()) {
        skip();
    }
    run_checks("", server, DONE);
    expect_finding("socket", "OK", "mode 0660");
    snprintf(text, sizeof(text), "pid %d", (int)server->pid);
    expect_finding("connection", "OK", text);
    expect_finding("version", "OK", "mlacatd and libmlacat are 0.");
    expect_finding("ready", "OK", "takes calls");
    expect_finding("device", "OK", "host");
    static const char *const skipped[] = {"driver", "nvrtc", "gpu", "mps", "mps.user", "memory"};
    for (size_t i = 0; i < sizeof(skipped) / sizeof(skipped[0]); i++) {
        expect_finding(skipped[i], "SKIPPED", "no GPU here: libcuda.so.1");
    }
    expect_finding("cache", "SKIPPED", "serves no GPU");
    run_doctor("", server, "doctor", DONE);
    REQUIRE(strstr(out, "OK       connection") != NULL && strstr(out, " 0 failed") != NULL, "%s", out);
}

static void test_doctor_socket_mode(void **state)
{
    struct server *server = *state;
    REQUIRE(chmod(server->socket, 0666) == 0);
    run_checks("", server, DONE);
    expect_finding("socket", "WARN", "mode 0666");
    run_doctor("", server, "doctor", DONE);
    REQUIRE(strstr(out, "-> every user of this machine") != NULL, "%s", out);
    REQUIRE(chmod(server->socket, 0) == 0);
    run_checks("", server, geteuid() == 0 ? DONE : FAILED);
    expect_finding("socket", geteuid() == 0 ? "WARN" : "FAIL", "mode 0000");
    REQUIRE(chmod(server->socket, 0660) == 0);
}

static void test_doctor_daemon_that_does_not_answer(void **state)
{
    struct server *server = *state;
    REQUIRE(kill(server->pid, SIGSTOP) == 0);
    run_checks("", server, FAILED);
    REQUIRE(kill(server->pid, SIGCONT) == 0);
    expect_finding("socket", "OK", "0660");
    expect_finding("connection", "FAIL", "DEADLINE_EXCEEDED");
    expect_finding("ready", "SKIPPED", "no connection");
    expect_finding("files", "OK", "descriptors"); /* its process is known all the same */
}

static void test_doctor_limits_of_the_daemon(void **state)
{
    struct server *server = *state;
    const struct rlimit few = {100, 100};
    const struct rlimit little = {65536, 65536};
    REQUIRE(prlimit(server->pid, RLIMIT_NOFILE, &few, NULL) == 0);
    REQUIRE(prlimit(server->pid, RLIMIT_MEMLOCK, &little, NULL) == 0);
    run_checks("", server, DONE);
    expect_finding("files", "WARN", "100 descriptors");
    expect_finding("memlock", "WARN", "65.5 kB");
}

static void test_doctor_one_cpu_is_few(void **state)
{
    (void)state;
    struct server server;
    cpu_set_t before;
    cpu_set_t one;
    CPU_ZERO(&one);
    REQUIRE(sched_getaffinity(0, sizeof(before), &before) == 0);
    for (size_t cpu = 0; CPU_COUNT(&one) == 0; cpu++) {
        if (CPU_ISSET(cpu, &before)) {
            CPU_SET(cpu, &one);
        }
    }
    REQUIRE(sched_setaffinity(0, sizeof(one), &one) == 0);
    server_start(&server, "");
    REQUIRE(sched_setaffinity(0, sizeof(before), &before) == 0);
    run_checks("", &server, DONE);
    expect_finding("cpus", "WARN", "may use 1 CPUs (by affinity 1");
    server_stop(&server);
}

/* ---------------------------------------------------------------------------------------------------- the GPU */

static uint64_t calls_of(const char *path, const char *name)
{
    struct fake_cuda_count count;
    uint64_t calls = UINT64_MAX;
    FILE *file = fopen(path, "re");
    REQUIRE(file != NULL, "%s", path);
    while (calls == UINT64_MAX && fread(&count, sizeof(count), 1, file) == 1) {
        if (strcmp(count.name, name) == 0) {
            calls = count.calls;
        }
    }
    fclose(file);
    REQUIRE(calls != UINT64_MAX, "%s", name);
    return calls;
}

static void test_doctor_with_a_gpu(void **state)
{
    struct server *server = *state;
    char counts[96];
    char environment[160];
    snprintf(counts, sizeof(counts), "%s/counts", cache);
    snprintf(environment, sizeof(environment), "MLACAT_FAKE_CUDA=counts=%s", counts);
    run_checks(environment, server, DONE);
    expect_finding("device", "OK", UUID " (cuda, Fake GPU 0)");
    expect_finding("driver", "OK", "CUDA 13.0 (at least 12.0");
    expect_finding("nvrtc", "OK", "libnvrtc.so.13 of CUDA 13.0");
    expect_finding("gpu", "OK", UUID ": Fake GPU 0, 1.1 GB, compute capability 9.0");
    expect_finding("mps", "WARN", "off: ");
    expect_finding("mps.user", "SKIPPED", "there is no /nonexistent/mps");
    expect_finding("cache", "OK", cache);
    REQUIRE(calls_of(counts, "cuInit") == 1);
    REQUIRE(calls_of(counts, "cuDevicePrimaryCtxRetain") == 0);
}

static void test_doctor_driver_that_will_not_do(void **state)
{
    struct server *server = *state;
    run_checks("MLACAT_FAKE_CUDA=driver=11080", server, FAILED);
    expect_finding("driver", "FAIL", "of CUDA 11.8; mlacatd needs 12.0");
    expect_finding("gpu", "SKIPPED", "11.8");
    run_checks("MLACAT_FAKE_CUDA=devices=0", server, FAILED);
    expect_finding("driver", "FAIL", "cuInit: FAKE_ERROR_100 (100)");
    run_checks("CUDA_VISIBLE_DEVICES=7 MLACAT_FAKE_CUDA=fail=cuInit:*:802", server, FAILED);
    expect_finding("driver", "FAIL", "(802); CUDA_VISIBLE_DEVICES is 7");
    run_checks("MLACAT_FAKE_CUDA=attribute=75:7;attribute=76:0", server, 1);
    expect_finding("gpu", "FAIL", "compute capability 7.0");
    run_checks("MLACAT_FAKE_NVRTC=version=12040", server, DONE);
    expect_finding("nvrtc", "OK", "12.4");
    run_checks("MLACAT_FAKE_NVRTC=dead", server, DONE);
    expect_finding("nvrtc", "WARN", "does not tell its version");
}

static void test_doctor_driver_that_cannot_be_loaded(void **state)
{
    struct server *server = *state;
    if (has_real_driver()) {
        skip();
    }
    run_checks("LD_LIBRARY_PATH=/nonexistent", server, FAILED);
    expect_finding("driver", "FAIL", "this process cannot load it");
    expect_finding("mps", "SKIPPED", "cannot load it");
}

static void test_doctor_mps_and_its_user(void **state)
{
    struct server *server = *state;
    char folder[96];
    snprintf(folder, sizeof(folder), "%s/mps", cache);
    REQUIRE(mkdir(folder, 0700) == 0);
    run_checks("MLACAT_FAKE_CUDA=attribute=133:1", server, DONE);
    expect_finding("mps", "OK", "mlacatd takes 32: ");
    char environment[256];
    snprintf(environment, sizeof(environment), "MLACAT_FAKE_CUDA=attribute=133:1 CUDA_MPS_PIPE_DIRECTORY=%s", folder);
    run_checks(environment, server, FAILED);
    expect_finding("mps.user", "FAIL", "is /nonexistent/mps for mlacatd and");

    server_drain(server);
    setenv("CUDA_MPS_PIPE_DIRECTORY", folder, 1);
    setenv("MLACAT_TEST_CONNECTIONS", "8", 1);
    server_run(server);
    unsetenv("MLACAT_TEST_CONNECTIONS");
    run_checks("MLACAT_FAKE_CUDA=attribute=133:1", server, DONE);
    expect_finding("mps", "OK", "mlacatd takes 8: ");
    expect_finding("mps.user", "OK", "this process and mlacatd run as uid");
    if (chown(folder, OTHER_UID, OTHER_UID) == 0) { /* only root can */
        run_checks("MLACAT_FAKE_CUDA=attribute=133:1", server, FAILED);
        expect_finding("mps.user", "FAIL", "is uid 12345's, mlacatd runs as uid");
    }
}

static void test_doctor_memory_of_the_daemon(void **state)
{
    struct server *server = *state;
    char environment[96];
    run_checks("", server, DONE);
    expect_finding("memory", "SKIPPED", "UNKNOWN: libnvidia-ml.so.1 ");
    snprintf(environment, sizeof(environment), "MLACAT_FAKE_NVML=%d:545259520", (int)server->pid);
    run_checks(environment, server, DONE);
    expect_finding("memory", "OK", UUID ": mlacatd itself (context and kernels) takes 545 MB");
    snprintf(environment, sizeof(environment), "MLACAT_FAKE_NVML=%d:mps:545259520", (int)server->pid);
    run_checks(environment, server, DONE);
    expect_finding("memory", "OK", "takes 545 MB");
    run_checks("MLACAT_FAKE_NVML=1:545259520", server, DONE);
    expect_finding("memory", "SKIPPED", "UNKNOWN: NVML lists no pid");
    snprintf(environment, sizeof(environment), "MLACAT_FAKE_NVML=%d:18446744073709551615", (int)server->pid);
    run_checks(environment, server, DONE);
    expect_finding("memory", "SKIPPED", "UNKNOWN: NVML tells no figures");
}

static void test_doctor_cache_of_the_daemon(void **state)
{
    struct server *server = *state;
    char away[96];
    run_checks("", server, DONE);
    expect_finding("cache", "OK", "mode 0700, kernels: ");
    REQUIRE(chmod(cache, 0777) == 0);
    run_checks("", server, DONE);
    expect_finding("cache", "WARN", "mode 0777");
    snprintf(away, sizeof(away), "%s.away", cache);
    REQUIRE(rename(cache, away) == 0);
    run_checks("", server, DONE);
    expect_finding("cache", "WARN", "No such file");
    REQUIRE(rename(away, cache) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_doctor_without_a_daemon),
        WITH_SERVER(test_doctor_without_a_gpu),
        WITH_SERVER(test_doctor_socket_mode),
        WITH_SERVER(test_doctor_daemon_that_does_not_answer),
        WITH_SERVER(test_doctor_limits_of_the_daemon),
        cmocka_unit_test(test_doctor_one_cpu_is_few),
        WITH_GPU(test_doctor_with_a_gpu),
        WITH_GPU(test_doctor_driver_that_will_not_do),
        WITH_GPU(test_doctor_driver_that_cannot_be_loaded),
        WITH_GPU(test_doctor_mps_and_its_user),
        WITH_GPU(test_doctor_memory_of_the_daemon),
        WITH_GPU(test_doctor_cache_of_the_daemon),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(findings);
    return failed;
}
