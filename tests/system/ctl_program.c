/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl_program.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "require.h"

#define WORDS_MAX 16

char out[OUTPUT_BYTES];
char err[OUTPUT_BYTES];

__attribute__((noreturn)) static void become_ctl(int out_fd, int err_fd, char *const *argv)
{
    if (dup2(out_fd, 1) < 0 || dup2(err_fd, 2) < 0 || prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) {
        _exit(126);
    }
    const char *named = getenv("MLACATCTL");
    execv(named && named[0] ? named : MLACATCTL_PATH, argv);
    _exit(127);
}

static void read_back(int fd, char text[OUTPUT_BYTES])
{
    ssize_t size = pread(fd, text, OUTPUT_BYTES - 1, 0);
    REQUIRE(size >= 0);
    text[size] = '\0';
    close(fd);
}

int ctl(const char *socket, const char *words)
{
    char line[256];
    char *argv[WORDS_MAX + 4] = {(char *)(uintptr_t) "mlacatctl"};
    int nr = 1;
    int status;
    snprintf(line, sizeof(line), "%s", words);
    for (char *rest = line, *word; (word = strsep(&rest, " ")) != NULL;) {
        REQUIRE(nr < WORDS_MAX);
        if (word[0] != '\0') {
            argv[nr++] = word;
        }
    }
    if (socket != NULL) {
        argv[nr++] = (char *)(uintptr_t) "--socket";
        argv[nr++] = (char *)(uintptr_t)socket;
    }
    int out_fd = memfd_create("out", MFD_CLOEXEC);
    int err_fd = memfd_create("err", MFD_CLOEXEC);
    REQUIRE(out_fd >= 0 && err_fd >= 0);
    fflush(NULL);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        become_ctl(out_fd, err_fd, argv);
    }
    uint64_t end_ms = now_ms() + 2 * WAIT_MS;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (now_ms() >= end_ms) {
            kill(pid, SIGKILL);
        }
        nap();
    }
    read_back(out_fd, out);
    read_back(err_fd, err);
    REQUIRE(WIFEXITED(status), "mlacatctl %s: wait status 0x%x", words, (unsigned)status);
    return WEXITSTATUS(status);
}

void expect(const char *socket, const char *words, int status)
{
    int found = ctl(socket, words);
    REQUIRE(found == status, "mlacatctl %s: exit status %d, not %d\n%s%s", words, found, status, out, err);
}

void expect_text(const char *text, const char *part)
{
    REQUIRE(strstr(text, part) != NULL, "\"%s\" is not in \"%.400s\"", part, text);
}

void expect_keys(json_t *object, const char *keys)
{
    char line[256];
    size_t nr = 0;
    snprintf(line, sizeof(line), "%s", keys);
    REQUIRE(json_is_object(object));
    for (char *rest = line, *key; (key = strsep(&rest, " ")) != NULL; nr++) {
        REQUIRE(json_object_get(object, key) != NULL, "there is no \"%s\" in %.400s", key, out);
    }
    REQUIRE(json_object_size(object) == nr, "%zu keys, not %zu: %.400s", json_object_size(object), nr, out);
}

json_t *parse_out(void)
{
    json_error_t why;
    json_t *value = json_loads(out, 0, &why);
    REQUIRE(value != NULL, "%s: %.400s", why.text, out);
    return value;
}

void expect_json(const char *socket, const char *words, int status, const char *keys)
{
    expect(socket, words, status);
    json_t *value = parse_out();
    expect_keys(value, keys);
    json_decref(value);
}
