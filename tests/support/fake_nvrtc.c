/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A library in place of NVRTC, for tests of the compile helper on machines without it. Its "machine code" is a text
 * that tells what it was asked for. $MLACAT_FAKE_NVRTC says how it behaves, words separated by commas:
 *     version=12040      the version, 13000 if not given
 *     oldest=90          knows no older GPU; without it the oldest is 75, the newest always 90
 *     hang | crash | refuse | empty | chatter   what a compilation does beside or instead of succeeding
 *     dead               cannot be asked for its version
 * $MLACAT_FAKE_NVRTC_CALLS names a file that gets one line for each compilation: its options, and NVRTC_APPEND_FLAGS.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))
#define TEXT_BYTES 65536

enum { SUCCESS = 0, ERROR_INVALID_OPTION = 5, ERROR_COMPILATION = 6, ERROR_INTERNAL = 11 };

struct program {
    const char *source;
    const char *header;
    char output[TEXT_BYTES];
    char log[256];
    bool virtual_arch;
};

EXPORTED int nvrtcVersion(int *major, int *minor);
EXPORTED int nvrtcGetNumSupportedArchs(int *archs_nr);
EXPORTED int nvrtcGetSupportedArchs(int *archs);
EXPORTED int nvrtcCreateProgram(struct program **program, const char *source, const char *name, int headers_nr,
                                const char *const *headers, const char *const *names);
EXPORTED int nvrtcCompileProgram(struct program *program, int options_nr, const char *const *options);
EXPORTED int nvrtcGetProgramLogSize(struct program *program, size_t *bytes_nr);
EXPORTED int nvrtcGetProgramLog(struct program *program, char *log);
EXPORTED int nvrtcGetCUBINSize(struct program *program, size_t *bytes_nr);
EXPORTED int nvrtcGetCUBIN(struct program *program, char *cubin);
EXPORTED int nvrtcGetPTXSize(struct program *program, size_t *bytes_nr);
EXPORTED int nvrtcGetPTX(struct program *program, char *ptx);
EXPORTED const char *nvrtcGetErrorString(int result);

/* What stands behind `word` in the behaviour, up to a comma; NULL: the word is not in it. */
static const char *behaviour(const char *word)
{
    const char *all = getenv("MLACAT_FAKE_NVRTC");
    const char *at = all ? strstr(all, word) : NULL;
    return at ? at + strlen(word) : NULL;
}

static int behaviour_number(const char *word, int otherwise)
{
    const char *text = behaviour(word);
    return text ? (int)strtol(text, NULL, 10) : otherwise;
}

int nvrtcVersion(int *major, int *minor)
{
    int version = behaviour_number("version=", 13000);
    *major = version / 1000;
    *minor = version % 1000 / 10;
    return behaviour("dead") ? ERROR_INTERNAL : SUCCESS;
}

static const int known[] = {75, 80, 90};

int nvrtcGetNumSupportedArchs(int *archs_nr)
{
    *archs_nr = 0;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        *archs_nr += known[i] >= behaviour_number("oldest=", 0);
    }
    return SUCCESS;
}

int nvrtcGetSupportedArchs(int *archs)
{
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (known[i] >= behaviour_number("oldest=", 0)) {
            *archs++ = known[i];
        }
    }
    return SUCCESS;
}

int nvrtcCreateProgram(struct program **program, const char *source, const char *name, int headers_nr,
                       const char *const *headers, const char *const *names)
{
    (void)name;
    (void)names;
    *program = calloc(1, sizeof(**program));
    if (!*program) {
        return ERROR_INTERNAL;
    }
    (*program)->source = source;
    (*program)->header = headers_nr > 0 ? headers[0] : "";
    return SUCCESS;
}

static void tell_options(int options_nr, const char *const *options)
{
    const char *path = getenv("MLACAT_FAKE_NVRTC_CALLS");
    int fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    const char *flags = getenv("NVRTC_APPEND_FLAGS");
    if (fd < 0) {
        return;
    }
    for (int i = 0; i < options_nr; i++) {
        dprintf(fd, "%s ", options[i]);
    }
    dprintf(fd, "append=%s\n", flags ? flags : "");
    close(fd);
}

int nvrtcCompileProgram(struct program *program, int options_nr, const char *const *options)
{
    size_t length = 0;
    tell_options(options_nr, options);
    while (behaviour("hang")) {
        pause();
    }
    if (behaviour("crash")) {
        abort();
    }
    if (behaviour("chatter")) {
        printf("text on standard output\n");
        fflush(stdout);
    }
    for (int i = 0; i < options_nr; i++) {
        if (strcmp(options[i], "--no-cache") == 0 && behaviour_number("version=", 13000) < 12090) {
            return ERROR_INVALID_OPTION;
        }
        program->virtual_arch |= strncmp(options[i], "--gpu-architecture=compute_", 27) == 0;
        length += (size_t)snprintf(program->output + length, sizeof(program->output) - length, "%s\n", options[i]);
    }
    if (behaviour("refuse")) {
        snprintf(program->log, sizeof(program->log), "first line of the log\nsecond line\n");
        return ERROR_COMPILATION;
    }
    snprintf(program->output + length, sizeof(program->output) - length, "source=%zu header=%zu",
             strlen(program->source), strlen(program->header));
    return SUCCESS;
}

int nvrtcGetProgramLogSize(struct program *program, size_t *bytes_nr)
{
    *bytes_nr = strlen(program->log) + 1;
    return SUCCESS;
}

int nvrtcGetProgramLog(struct program *program, char *log)
{
    memcpy(log, program->log, strlen(program->log) + 1);
    return SUCCESS;
}

int nvrtcGetCUBINSize(struct program *program, size_t *bytes_nr)
{
    *bytes_nr = program->virtual_arch || behaviour("empty") ? 0 : strlen(program->output);
    return SUCCESS;
}

int nvrtcGetCUBIN(struct program *program, char *cubin)
{
    memcpy(cubin, program->output, strlen(program->output));
    return SUCCESS;
}

int nvrtcGetPTXSize(struct program *program, size_t *bytes_nr)
{
    *bytes_nr = behaviour("empty") ? 0 : strlen(program->output) + 1;
    return SUCCESS;
}

int nvrtcGetPTX(struct program *program, char *ptx)
{
    memcpy(ptx, program->output, strlen(program->output) + 1);
    return SUCCESS;
}

const char *nvrtcGetErrorString(int result)
{
    return result == ERROR_COMPILATION ? "FAKE_ERROR_COMPILATION" : "FAKE_ERROR";
}
