/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the start of mlacatd on a GPU to its first served call: with an empty kernel cache, then with what that start
 * left there. Beside it what the driver took of that to make the daemon's context, as the daemon logs it. The client
 * has its own context and memory before the clock runs.
 *
 *     bench_start [mlacatd] [starts of each kind]        default mlacatd beside this program, and 5
 *
 * Exit status 77 = no GPU here, 1 = a daemon did not serve, or a result was wrong.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gpu.h"
#include "measure.h"
#include "mlacat/mlacat.h"

#define SKIPPED 77
#define STARTS 5
#define STARTS_MAX 99
#define LIMIT_NS 60000000000ull
#define LOOK_US 500
#define PATH_BYTES 256
#define HEADS 16
#define FIRST 128
#define SECOND 64
#define OUT_BYTES (HEADS * (FIRST + SECOND) * 2)
#define IN_BYTES (HEADS * FIRST * 2 + SECOND * 2)

/* One daemon's start. */
struct start {
    double served_ms;
    double context_ms;
};

struct bench {
    const char *daemon;
    char folder[PATH_BYTES / 4];
    char socket[PATH_BYTES];
    char log[PATH_BYTES];
    char uuid[64];
    struct gpu gpu;
    gpu_address memory; /* output, then the inputs */
    unsigned char expected[OUT_BYTES];
};

__attribute__((noreturn)) static void die(const char *what, const char *why)
{
    fprintf(stderr, "bench_start: %s: %s\n", what, why);
    exit(1);
}

static pid_t launch(const struct bench *bench, const char *device)
{
    pid_t parent = getpid();
    pid_t pid = fork();

    if (pid < 0)
        die("fork", "no process");
    if (pid > 0)
        return pid;
    int log = open(bench->log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (log < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0 || prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent)
        _exit(126);
    setenv("XDG_CACHE_HOME", bench->folder, 1);
    unsetenv("CACHE_DIRECTORY");
    execlp(bench->daemon, "mlacatd", "--socket", bench->socket, "--device", device, (char *)NULL);
    _exit(127);
}

static void stop(pid_t pid)
{
    int status;

    kill(pid, SIGTERM);
    waitpid(pid, &status, 0);
}

/* Looks for the daemon until it takes the connection. */
static struct mlacat_client *connect_to(const struct bench *bench, pid_t pid, uint64_t begin)
{
    struct mlacat_connect_options options = {.size = sizeof(options), .socket = bench->socket, .name = "bench_start"};
    struct mlacat_client *client = NULL;
    int status;

    while (mlacat_connect(&options, &client) != MLACAT_OK) {
        if (waitpid(pid, &status, WNOHANG) == pid || measure_now_ns() - begin > LIMIT_NS)
            die("the daemon does not serve", mlacat_error_message());
        usleep(LOOK_US);
    }
    return client;
}

static void must(enum mlacat_status status, const char *what)
{
    if (status != MLACAT_OK)
        die(what, mlacat_error_message());
}

/* The smallest call of a model, on memory that this process has had all the time. */
static void call_once(const struct bench *bench, struct mlacat_client *client)
{
    struct mlacat_call call = {.size = sizeof(call), .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16};
    struct mlacat_buffer *buffer;
    struct mlacat_stream *stream;

    must(mlacat_buffer_register_ptr(client, (const void *)(uintptr_t)bench->memory, OUT_BYTES + IN_BYTES, &buffer),
         "register");
    must(mlacat_stream_open(client, bench->uuid, &stream), "stream");
    call.operand[0] = mlacat_tensor_contiguous(buffer, 0, 1, HEADS, FIRST + SECOND);
    call.operand[1] = mlacat_tensor_contiguous(buffer, OUT_BYTES, 1, HEADS, FIRST);
    call.operand[2] = mlacat_tensor_contiguous(buffer, OUT_BYTES + HEADS * FIRST * 2, 1, 1, SECOND);
    must(mlacat_run(stream, &call, NULL), "call");
}

static double read_context_ms(const struct bench *bench)
{
    char line[1024];
    double ms = -1;
    FILE *file = fopen(bench->log, "re");

    while (file && fgets(line, sizeof(line), file)) {
        const char *at = strstr(line, " context_ms=");

        if (at)
            ms = strtod(at + strlen(" context_ms="), NULL);
    }
    if (file)
        fclose(file);
    return ms;
}

static struct start start_once(struct bench *bench)
{
    unsigned char found[OUT_BYTES];
    struct start start;
    uint64_t begin;
    struct mlacat_client *client;
    pid_t pid;

    if (!gpu_fill(&bench->gpu, bench->memory, 0xa5, OUT_BYTES))
        die("GPU", bench->gpu.error);
    begin = measure_now_ns();
    pid = launch(bench, bench->uuid);
    client = connect_to(bench, pid, begin);
    call_once(bench, client);
    start.served_ms = (double)(measure_now_ns() - begin) / 1e6;
    start.context_ms = read_context_ms(bench);
    if (!gpu_download(&bench->gpu, found, bench->memory, OUT_BYTES))
        die("GPU", bench->gpu.error);
    if (memcmp(found, bench->expected, OUT_BYTES) != 0)
        die("the first call", "its result is wrong");
    mlacat_disconnect(client);
    stop(pid);
    return start;
}

/* The UUID of the GPU that a daemon takes by itself; false: it takes none. */
static bool find_gpu(struct bench *bench)
{
    struct mlacat_device_info info = {.size = sizeof(info)};
    pid_t pid = launch(bench, "auto");
    struct mlacat_client *client = connect_to(bench, pid, measure_now_ns());

    must(mlacat_device_info(client, 0, &info), "device");
    snprintf(bench->uuid, sizeof(bench->uuid), "%s", info.uuid);
    mlacat_disconnect(client);
    stop(pid);
    return strcmp(info.kind, "cuda") == 0;
}

/* Random inputs on the GPU, and what must come out. */
static void prepare(struct bench *bench)
{
    unsigned char in[IN_BYTES];
    unsigned seed = 1;

    for (size_t i = 0; i < IN_BYTES; i++)
        in[i] = (unsigned char)((seed = seed * 1103515245u + 12345u) >> 16);
    for (size_t head = 0; head < HEADS; head++) {
        unsigned char *row = bench->expected + head * (FIRST + SECOND) * 2;

        memcpy(row, in + head * FIRST * 2, FIRST * 2);
        memcpy(row + FIRST * 2, in + HEADS * FIRST * 2, SECOND * 2);
    }
    if (!gpu_open(&bench->gpu, bench->uuid) || !gpu_alloc(&bench->gpu, OUT_BYTES + IN_BYTES, &bench->memory) ||
        !gpu_upload(&bench->gpu, bench->memory + OUT_BYTES, in, IN_BYTES))
        die("GPU", bench->gpu.error);
}

/* Removes what the daemon keeps in its cache. */
static void empty_cache(const struct bench *bench)
{
    char path[PATH_BYTES];
    char entry[2 * PATH_BYTES];
    DIR *dir;

    snprintf(path, sizeof(path), "%s/mlacat", bench->folder);
    dir = opendir(path);
    if (!dir)
        return;
    for (const struct dirent *at; (at = readdir(dir)) != NULL;) {
        snprintf(entry, sizeof(entry), "%s/%s", path, at->d_name);
        if (at->d_name[0] != '.')
            unlink(entry);
    }
    closedir(dir);
    rmdir(path);
}

static void print_row(struct bench *bench, const char *name, bool empty, int starts_nr)
{
    struct samples served;
    struct samples context;
    struct samples beyond;

    if (!samples_init(&served, STARTS_MAX) || !samples_init(&context, STARTS_MAX) || !samples_init(&beyond, STARTS_MAX))
        die("samples", "no memory");
    for (int i = 0; i < starts_nr; i++) {
        if (empty)
            empty_cache(bench);
        struct start start = start_once(bench);

        samples_add(&served, start.served_ms);
        samples_add(&context, start.context_ms);
        samples_add(&beyond, start.served_ms - start.context_ms);
    }
    printf("%-6s %12.1f %12.1f %12.1f %12.1f %7d\n", name, samples_quantile(&served, 0.5),
           samples_quantile(&context, 0.5), samples_quantile(&beyond, 0.5), samples_quantile(&beyond, 1), starts_nr);
    samples_fini(&served);
    samples_fini(&context);
    samples_fini(&beyond);
}

static void find_daemon(char *path, size_t size)
{
    ssize_t length = readlink("/proc/self/exe", path, size - 1);

    path[length > 0 ? length : 0] = '\0';
    char *slash = strrchr(path, '/');
    snprintf(slash ? slash : path, size - (size_t)(slash ? slash - path : 0), "/mlacatd");
}

int main(int argc, char **argv)
{
    static struct bench bench;
    char beside[PATH_BYTES * 4];
    long starts_nr = argc > 2 ? strtol(argv[2], NULL, 10) : STARTS;
    bool good;

    if (starts_nr < 1 || starts_nr > STARTS_MAX)
        die(argv[2], "the number of starts is 1 to 99");
    find_daemon(beside, sizeof(beside));
    bench.daemon = argc > 1 ? argv[1] : beside;
    snprintf(bench.folder, sizeof(bench.folder), "/tmp/mlacat-start-XXXXXX");
    if (!mkdtemp(bench.folder))
        die(bench.folder, "cannot be made");
    snprintf(bench.socket, sizeof(bench.socket), "%s/socket", bench.folder);
    snprintf(bench.log, sizeof(bench.log), "%s/log", bench.folder);
    good = find_gpu(&bench);
    if (good) {
        prepare(&bench);
        printf("start of mlacatd to its first served call, in ms; medians\n");
        printf("%-6s %12s %12s %12s %12s %7s\n", "cache", "first call", "its context", "beyond", "at most", "starts");
        print_row(&bench, "empty", true, (int)starts_nr);
        print_row(&bench, "warm", false, (int)starts_nr);
        gpu_free(&bench.gpu, bench.memory);
        gpu_close(&bench.gpu);
    } else {
        printf("SKIPPED: the daemon finds no GPU here\n");
    }
    empty_cache(&bench);
    unlink(bench.log);
    char lock[PATH_BYTES + 8];
    snprintf(lock, sizeof(lock), "%s.lock", bench.socket);
    unlink(lock);
    rmdir(bench.folder);
    return good ? 0 : SKIPPED;
}
