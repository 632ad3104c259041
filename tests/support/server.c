/* SPDX-License-Identifier: Apache-2.0 */
#include "server.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gpu_memory.h"
#include "require.h"

#define LISTEN_FD 3
#define LISTENS 0x10000u /* in the flags of /proc/net/unix */

const char *server_program(void)
{
    const char *named = getenv("MLACATD");
    return named && named[0] ? named : MLACATD_PATH;
}

void server_prepare(struct server *server)
{
    *server = (struct server){.listen_fd = -1, .folder = "/tmp/mlacat-test-XXXXXX"};
    REQUIRE(mkdtemp(server->folder) != NULL);
    REQUIRE(chmod(server->folder, 0755) == 0); /* the socket's own mode and the daemon decide */
    snprintf(server->socket, sizeof(server->socket), "%s/socket", server->folder);
    snprintf(server->config, sizeof(server->config), "%s/config", server->folder);
    snprintf(server->log, sizeof(server->log), "%s/log", server->folder);
}

void server_configure(struct server *server, const char *options)
{
    FILE *file = fopen(server->config, "we");
    REQUIRE(file != NULL, "%s", server->config);
    fprintf(file, "[mlacatd]\nsocket = %s\n%s", server->socket, options);
    if (!strstr(options, "device =")) {
        fprintf(file, "device = %s\n", gpu_memory_used() ? gpu_memory_device() : "host");
    }
    if (!strstr(options, "hello_timeout_ms =")) {
        fprintf(file, "hello_timeout_ms = %d\n", WAIT_MS); /* the default is short for a busy machine */
    }
    REQUIRE(fclose(file) == 0);
}

/* The driver of tests/support/fake_cuda watches a daemon by its rules, which are not those of a client. */
static void be_watched(void)
{
    const char *fake = getenv("MLACAT_FAKE_CUDA");
    char words[512];
    if (fake) {
        snprintf(words, sizeof(words), "daemon;%s", fake);
        setenv("MLACAT_FAKE_CUDA", words, 1);
    }
}

/* share.c has set them for its own process; the daemon takes what it wants by itself, unless the test's environment
 * knows of others beside it (tests/gpu/run.sh). */
static void set_connections(void)
{
    const char *connections = getenv("MLACAT_TEST_CONNECTIONS");
    if (connections) {
        setenv("CUDA_DEVICE_MAX_CONNECTIONS", connections, 1);
    } else {
        unsetenv("CUDA_DEVICE_MAX_CONNECTIONS");
    }
}

__attribute__((noreturn)) static void run_program(const struct server *server, pid_t parent)
{
    char pid_text[16];
    int log = open(server->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0 || prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 ||
        getppid() != parent) {
        _exit(126);
    }
    if (server->listen_fd >= 0) {
        snprintf(pid_text, sizeof(pid_text), "%d", (int)getpid());
        setenv("LISTEN_PID", pid_text, 1);
        setenv("LISTEN_FDS", "1", 1);
        if (server->listen_fd == LISTEN_FD) {
            fcntl(LISTEN_FD, F_SETFD, 0);
        } else {
            dup2(server->listen_fd, LISTEN_FD);
        }
    }
    if (server->notify_socket != NULL) {
        setenv("NOTIFY_SOCKET", server->notify_socket, 1);
    }
    if (server->watchdog_us != NULL) {
        setenv("WATCHDOG_USEC", server->watchdog_us, 1);
    }
    be_watched();
    set_connections();
    execl(server_program(), "mlacatd", "--config", server->config, (char *)NULL);
    _exit(127);
}

void server_launch(struct server *server)
{
    pid_t parent = getpid();
    fflush(NULL);
    server->pid = fork();
    REQUIRE(server->pid >= 0);
    if (server->pid == 0) {
        run_program(server, parent);
    }
}

/* When it returns the daemon has ended the connection; it closes its descriptor soon. */
static bool takes_connections(const struct server *server)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char byte;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", server->socket);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    REQUIRE(fd >= 0);
    bool connected = connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0;
    if (connected) {
        shutdown(fd, SHUT_WR);
        connected = read(fd, &byte, 1) == 0;
    }
    close(fd);
    return connected;
}

void server_wait_ready(struct server *server)
{
    uint64_t end_ms = now_ms() + WAIT_MS;
    int status;
    while (!takes_connections(server)) {
        if (waitpid(server->pid, &status, WNOHANG) == server->pid) {
            server->pid = 0;
            server_show_log(server);
            REQUIRE(false, "%s ended at its start with wait status 0x%x", server_program(), (unsigned)status);
        }
        REQUIRE(now_ms() < end_ms, "nobody listens at %s", server->socket);
        nap();
    }
}

void server_run(struct server *server)
{
    server_launch(server);
    server_wait_ready(server);
}

/* Connections that the daemon has open: sockets that have its path and do not listen. */
static bool has_connections(const struct server *server)
{
    char line[256];
    bool found = false;
    FILE *file = fopen("/proc/net/unix", "re");
    REQUIRE(file != NULL);
    while (!found && fgets(line, sizeof(line), file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        const char *path = strchr(line, '/');
        char *rest = line;
        const char *flags = "";
        for (int column = 0; column < 4 && flags != NULL; column++) {
            flags = strsep(&rest, " ");
        }
        found = path != NULL && flags != NULL && strcmp(path, server->socket) == 0 &&
                (strtoul(flags, NULL, 16) & LISTENS) == 0;
    }
    fclose(file);
    return found;
}

void server_start(struct server *server, const char *options)
{
    server_prepare(server);
    server_configure(server, options);
    server_run(server);
    WAIT_UNTIL(!has_connections(server)); /* ours is closed: what the daemon has open can be counted */
}

int server_wait(struct server *server)
{
    int status = 0;
    pid_t pid = server->pid;
    uint64_t end_ms = now_ms() + 2 * WAIT_MS;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (now_ms() >= end_ms) {
            server_show_log(server);
            REQUIRE(false, "the daemon (pid %d) does not end", (int)pid);
        }
        nap();
    }
    server->pid = 0;
    return status;
}

void server_kill(struct server *server)
{
    REQUIRE(server->pid > 0 && kill(server->pid, SIGKILL) == 0);
    server_wait(server);
}

void server_drain(struct server *server)
{
    if (server->pid == 0) {
        return;
    }
    kill(server->pid, SIGTERM);
    int status = server_wait(server);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        server_show_log(server);
        REQUIRE(false, "the daemon ended with wait status 0x%x", (unsigned)status);
    }
    REQUIRE(server->listen_fd >= 0 || access(server->socket, F_OK) != 0, "%s is left behind", server->socket);
}

void server_stop(struct server *server)
{
    char lock[SERVER_PATH_BYTES + 8];
    server_drain(server);
    snprintf(lock, sizeof(lock), "%s.lock", server->socket);
    unlink(lock);
    unlink(server->socket);
    unlink(server->config);
    unlink(server->log);
    REQUIRE(rmdir(server->folder) == 0, "%s", server->folder);
}

bool server_log_has(const struct server *server, const char *text)
{
    char line[2048];
    bool found = false;
    FILE *file = fopen(server->log, "re");
    while (file != NULL && !found && fgets(line, sizeof(line), file) != NULL) {
        found = strstr(line, text) != NULL;
    }
    if (file != NULL) {
        fclose(file);
    }
    return found;
}

void server_show_log(const struct server *server)
{
    char line[2048];
    FILE *file = fopen(server->log, "re");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        fprintf(stderr, "  log: %s", line);
    }
    if (file != NULL) {
        fclose(file);
    }
}

int server_setup(void **state)
{
    struct server *server = calloc(1, sizeof(*server));
    REQUIRE(server != NULL);
    *state = server;
    server_start(server, "");
    return 0;
}

int server_teardown(void **state)
{
    struct server *server = *state;
    server_stop(server);
    free(server);
    return 0;
}
