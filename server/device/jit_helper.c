/* SPDX-License-Identifier: Apache-2.0 */
/* The compile helper: a process that loads NVRTC, compiles one text and ends. jit_compile.c is its other end. */
#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "cuda_jit.h"
#include "jit_text.h"
#include "log.h"

#define STRINGS_MAX (4 + JIT_OPTIONS_MAX)
#define LOG_LINES_MAX 20
#define LOG_TEXT_BYTES 400

struct program;

#define NVRTC_CALLS(X)                                                                                \
    X(nvrtcVersion, (int *, int *))                                                                   \
    X(nvrtcGetNumSupportedArchs, (int *))                                                             \
    X(nvrtcGetSupportedArchs, (int *))                                                                \
    X(nvrtcCreateProgram,                                                                             \
      (struct program **, const char *, const char *, int, const char *const *, const char *const *)) \
    X(nvrtcCompileProgram, (struct program *, int, const char *const *))                              \
    X(nvrtcGetProgramLogSize, (struct program *, size_t *))                                           \
    X(nvrtcGetProgramLog, (struct program *, char *))                                                 \
    X(nvrtcGetCUBINSize, (struct program *, size_t *))                                                \
    X(nvrtcGetCUBIN, (struct program *, char *))                                                      \
    X(nvrtcGetPTXSize, (struct program *, size_t *))                                                  \
    X(nvrtcGetPTX, (struct program *, char *))

#define MEMBER(name, arguments) int(*name) arguments;
static struct {
    NVRTC_CALLS(MEMBER)
    const char *(*nvrtcGetErrorString)(int);
} nvrtc;

struct entry {
    const char *name;
    void *slot;
};
#define ENTRY(name, arguments) {#name, &nvrtc.name},

/* ---- talking ---- */

static bool write_all(int fd, const void *bytes, size_t bytes_nr)
{
    const char *from = bytes;
    while (bytes_nr > 0) {
        ssize_t put = write(fd, from, bytes_nr);
        if (put < 0 && errno != EINTR) {
            return false;
        }
        from += put > 0 ? put : 0;
        bytes_nr -= put > 0 ? (size_t)put : 0;
    }
    return true;
}

static bool read_all(void *bytes, size_t bytes_nr)
{
    char *to = bytes;
    while (bytes_nr > 0) {
        ssize_t got = read(STDIN_FILENO, to, bytes_nr);
        if (got == 0 || (got < 0 && errno != EINTR)) {
            return false;
        }
        to += got > 0 ? got : 0;
        bytes_nr -= got > 0 ? (size_t)got : 0;
    }
    return true;
}

static bool answer(int fd, enum jit_packet_kind kind, const void *bytes, size_t bytes_nr)
{
    struct jit_packet packet = {.magic = JIT_PACKET_MAGIC, .kind = kind, .bytes_nr = bytes_nr};
    return write_all(fd, &packet, sizeof(packet)) && write_all(fd, bytes, bytes_nr);
}

static int answer_failure(int fd, const struct error *err)
{
    answer(fd, JIT_FAILED, err, sizeof(*err));
    return EXIT_FAILURE;
}

/* ---- the library ---- */

static void *open_library(const char *path, struct error *err)
{
    static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "/usr/local/cuda/lib64/libnvrtc.so.13",
                                        "/usr/local/cuda/lib64/libnvrtc.so.12"};
    if (path) {
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!library) {
            error_set(err, MLACAT_UNAVAILABLE, "NVRTC: %s", dlerror());
        }
        return library;
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (library) {
            return library;
        }
    }
    error_set(err, MLACAT_UNAVAILABLE,
              "NVRTC is not installed: neither libnvrtc.so.13 nor libnvrtc.so.12 is on the library path or in "
              "/usr/local/cuda/lib64");
    return NULL;
}

static enum mlacat_status load_nvrtc(const char *path, struct error *err)
{
    static const struct entry entries[] = {
        NVRTC_CALLS(ENTRY){"nvrtcGetErrorString", &nvrtc.nvrtcGetErrorString},
    };
    void *library = open_library(path, err);
    if (!library) {
        return err->code;
    }
    for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
        void *symbol = dlsym(library, entries[i].name);
        if (!symbol) {
            return error_set(err, MLACAT_UNAVAILABLE, "this NVRTC is too old: it has no %s", entries[i].name);
        }
        memcpy(entries[i].slot, &symbol, sizeof(symbol));
    }
    return MLACAT_OK;
}

static enum mlacat_status greet(int fd, struct error *err)
{
    struct jit_greeting greeting = {0};
    int archs[JIT_ARCHS_MAX];
    int archs_nr = 0;
    int major = 0;
    int minor = 0;
    int result = nvrtc.nvrtcVersion(&major, &minor);
    if (result == 0) {
        result = nvrtc.nvrtcGetNumSupportedArchs(&archs_nr);
    }
    if (result == 0 && archs_nr > JIT_ARCHS_MAX) {
        return error_set(err, MLACAT_UNAVAILABLE, "this NVRTC knows %d GPU types, the daemon at most %d", archs_nr,
                         JIT_ARCHS_MAX);
    }
    if (result == 0) {
        result = nvrtc.nvrtcGetSupportedArchs(archs);
    }
    if (result != 0) {
        return error_set(err, MLACAT_UNAVAILABLE, "NVRTC does not start: %s", nvrtc.nvrtcGetErrorString(result));
    }
    greeting.nvrtc_version = (uint32_t)(major * 1000 + minor * 10);
    greeting.archs_nr = (uint32_t)archs_nr;
    for (int i = 0; i < archs_nr; i++) {
        greeting.archs[i] = (uint32_t)archs[i];
    }
    if (!answer(fd, JIT_GREETING, &greeting, sizeof(greeting))) {
        return error_set(err, MLACAT_INTERNAL, "the daemon is gone");
    }
    return MLACAT_OK;
}

/* ---- the compilation ---- */

/* Line by line, a bounded number of them. */
static void log_compiler_output(enum log_level level, char *text)
{
    char quoted[LOG_TEXT_BYTES];
    char *rest = NULL;
    int lines_nr = 0;
    for (char *line = strtok_r(text, "\n", &rest); line && lines_nr < LOG_LINES_MAX;
         line = strtok_r(NULL, "\n", &rest)) {
        log_line(NULL, level, "nvrtc", "text=%s", log_quote(line, quoted, sizeof(quoted)));
        lines_nr++;
    }
}

/* Logs what the compiler said; the first line is the reason of a failure. */
static void take_output(struct program *program, int result, struct error *err)
{
    size_t bytes_nr = 0;
    char *text = NULL;
    if (nvrtc.nvrtcGetProgramLogSize(program, &bytes_nr) == 0 && bytes_nr > 1) {
        text = calloc(bytes_nr + 1, 1);
    }
    if (text && nvrtc.nvrtcGetProgramLog(program, text) != 0) {
        text[0] = '\0';
    }
    if (result != 0) {
        error_set(err, MLACAT_INVALID_ARGUMENT, "NVRTC refuses the kernel source: %s: %.*s",
                  nvrtc.nvrtcGetErrorString(result), text ? (int)strcspn(text, "\n") : 0, text ? text : "");
    }
    if (text) {
        log_compiler_output(result != 0 ? LOG_LEVEL_ERROR : LOG_LEVEL_INFO, text);
    }
    free(text);
}

/* The cubin; where the options named a virtual architecture there is none, and the PTX is the image. */
static enum mlacat_status take_image(struct program *program, struct jit_compiled *image, struct error *err)
{
    int result = nvrtc.nvrtcGetCUBINSize(program, &image->bytes_nr);
    image->ptx = result != 0 || image->bytes_nr == 0;
    if (image->ptx) {
        result = nvrtc.nvrtcGetPTXSize(program, &image->bytes_nr);
    }
    if (result == 0 && (image->bytes_nr == 0 || image->bytes_nr > JIT_IMAGE_MAX)) {
        return error_set(err, MLACAT_INTERNAL, "NVRTC built an image of %zu bytes", image->bytes_nr);
    }
    image->bytes = result == 0 ? calloc(image->bytes_nr, 1) : NULL;
    if (image->bytes) {
        result = image->ptx ? nvrtc.nvrtcGetPTX(program, image->bytes) : nvrtc.nvrtcGetCUBIN(program, image->bytes);
    }
    if (!image->bytes || result != 0) {
        return error_set(err, MLACAT_INTERNAL, "NVRTC does not hand out the image: %s",
                         nvrtc.nvrtcGetErrorString(result));
    }
    return MLACAT_OK;
}

static enum mlacat_status compile(const char *const *strings, uint32_t strings_nr, struct jit_compiled *image,
                                  struct error *err)
{
    struct program *program = NULL;
    const char *header_name = strings[2];
    const char *header = strings[3];
    int headers_nr = header_name[0] != '\0';
    int result = nvrtc.nvrtcCreateProgram(&program, strings[1], strings[0], headers_nr, &header, &header_name);
    if (result != 0) {
        return error_set(err, MLACAT_INTERNAL, "NVRTC takes no program: %s", nvrtc.nvrtcGetErrorString(result));
    }
    result = nvrtc.nvrtcCompileProgram(program, (int)strings_nr - 4, strings + 4);
    take_output(program, result, err);
    return result == 0 ? take_image(program, image, err) : err->code;
}

/* Cuts a request into its strings. False: it is not of this form. */
static bool split_request(char *bytes, size_t bytes_nr, const char **strings, uint32_t *strings_nr)
{
    *strings_nr = 0;
    if (bytes_nr == 0 || bytes[bytes_nr - 1] != '\0') {
        return false;
    }
    for (size_t at = 0; at < bytes_nr; at += strlen(bytes + at) + 1) {
        if (*strings_nr == STRINGS_MAX) {
            return false;
        }
        strings[(*strings_nr)++] = bytes + at;
    }
    return *strings_nr >= 4;
}

static int serve(int fd, struct error *err)
{
    const char *strings[STRINGS_MAX];
    uint32_t strings_nr;
    struct jit_packet packet;
    struct jit_compiled image = {0};
    if (!read_all(&packet, sizeof(packet))) {
        return EXIT_SUCCESS; /* the daemon only wanted the greeting */
    }
    char *request = packet.bytes_nr <= JIT_REQUEST_MAX ? malloc(packet.bytes_nr) : NULL;
    if (packet.magic != JIT_PACKET_MAGIC || packet.kind != JIT_REQUEST || !request ||
        !read_all(request, packet.bytes_nr) || !split_request(request, packet.bytes_nr, strings, &strings_nr)) {
        free(request);
        error_set(err, MLACAT_INTERNAL, "the request to the compile helper is malformed: kind %u, %" PRIu64 " bytes",
                  packet.kind, packet.bytes_nr);
        return answer_failure(fd, err);
    }
    enum mlacat_status status = compile(strings, strings_nr, &image, err);
    bool answered = status == MLACAT_OK
                        ? answer(fd, image.ptx ? JIT_IMAGE_PTX : JIT_IMAGE_CUBIN, image.bytes, image.bytes_nr)
                        : answer(fd, JIT_FAILED, err, sizeof(*err));
    free(image.bytes);
    free(request);
    return status == MLACAT_OK && answered ? EXIT_SUCCESS : EXIT_FAILURE;
}

bool jit_is_helper(int argc, char *const argv[])
{
    return argc >= 2 && strcmp(argv[1], JIT_HELPER_ARGUMENT) == 0;
}

int jit_helper_main(int argc, char *const argv[])
{
    struct error err = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a daemon that died before this line has closed our standard input */
    unsetenv("NVRTC_APPEND_FLAGS");   /* the cache's key does not know of it */
    int fd = dup(STDOUT_FILENO);
    if (fd < 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0) { /* what a library prints must not get into the image */
        log_error("compile_helper", "reason=\"standard output is not usable: %s\"", strerror(errno));
        return EXIT_FAILURE;
    }
    if (load_nvrtc(argc > 2 ? argv[2] : NULL, &err) != MLACAT_OK || greet(fd, &err) != MLACAT_OK) {
        return answer_failure(fd, &err);
    }
    return serve(fd, &err);
}
