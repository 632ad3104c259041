/* SPDX-License-Identifier: Apache-2.0 */
#include "systemd.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "log.h"

#define LISTEN_FDS_START 3
#define LISTEN_FDS_MOST 1024

static struct sockaddr_un notify_address;
static socklen_t notify_address_bytes; /* 0: nobody to notify */
static int listen_fd = -1;
static uint64_t watchdog_ms;

/* A whole decimal number; false if the variable is not set or is something else. */
static bool read_number(const char *name, uint64_t *value)
{
    const char *text = getenv(name);
    if (!text || !isdigit((unsigned char)text[0])) {
        return false;
    }
    char *end;
    errno = 0;
    *value = strtoull(text, &end, 10);
    return errno == 0 && *end == '\0';
}

static bool is_us(uint64_t pid)
{
    return pid == (uint64_t)getpid();
}

static void read_notify_socket(void)
{
    notify_address_bytes = 0;
    const char *path = getenv("NOTIFY_SOCKET");
    if (!path || !path[0]) {
        return;
    }
    size_t length = strlen(path);
    if ((path[0] != '/' && path[0] != '@') || length >= sizeof(notify_address.sun_path)) {
        char shown[128];
        log_warning("notify_socket_unusable",
                    "NOTIFY_SOCKET=%s hint=\"a path or @name of at most %zu bytes is needed\"",
                    log_quote(path, shown, sizeof(shown)), sizeof(notify_address.sun_path) - 1);
        return;
    }
    memset(&notify_address, 0, sizeof(notify_address));
    notify_address.sun_family = AF_UNIX;
    memcpy(notify_address.sun_path, path, length);
    if (path[0] == '@') {
        notify_address.sun_path[0] = '\0';
    }
    /* An abstract name is exactly as long as it says: no NUL at the end, it would be part of the name. */
    notify_address_bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + (path[0] == '/'));
}

/* Half of the time that the manager waits, as sd_watchdog_enabled(3) advises; 1 ms where that would be 0. */
static void read_watchdog(void)
{
    uint64_t usec;
    uint64_t pid;
    watchdog_ms = 0;
    if (!read_number("WATCHDOG_USEC", &usec) || usec == 0) {
        return;
    }
    if (getenv("WATCHDOG_PID") && !(read_number("WATCHDOG_PID", &pid) && is_us(pid))) {
        return;
    }
    watchdog_ms = usec < 2000 ? 1 : usec / 2000;
}

/* A process that execs us may leave its own variables behind: LISTEN_PID says for whom the descriptors are. */
static void read_listen_fds(void)
{
    uint64_t pid;
    uint64_t fds_nr;
    listen_fd = -1;
    if (!getenv("LISTEN_FDS")) {
        return;
    }
    if (!read_number("LISTEN_PID", &pid) || !is_us(pid)) {
        log_warning("listen_fds_ignored", "reason=\"LISTEN_PID is not this process\" pid=%d", (int)getpid());
        return;
    }
    if (!read_number("LISTEN_FDS", &fds_nr) || fds_nr > LISTEN_FDS_MOST) {
        log_warning("listen_fds_ignored", "reason=\"LISTEN_FDS is not a number from 0 to %d\"", LISTEN_FDS_MOST);
        return;
    }
    for (int fd = LISTEN_FDS_START; fd < LISTEN_FDS_START + (int)fds_nr; fd++) {
        if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) {
            log_warning("listen_fds_ignored", "reason=\"LISTEN_FDS names a descriptor that is not open\" fd=%d", fd);
            return;
        }
    }
    if (fds_nr > 1) {
        const char *names = getenv("LISTEN_FDNAMES");
        char shown[128];
        log_warning("listen_fds_ignored",
                    "reason=\"one socket is needed\" fds=%u names=%s hint=\"leave one Listen line in the socket unit\"",
                    (unsigned)fds_nr, log_quote(names, shown, sizeof(shown)));
        return;
    }
    listen_fd = fds_nr == 1 ? LISTEN_FDS_START : -1;
}

void systemd_init(void)
{
    static const char *const variables[] = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
                                            "LISTEN_PID",    "LISTEN_FDS",    "LISTEN_FDNAMES"};
    read_notify_socket();
    read_watchdog();
    read_listen_fds();
    for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++) {
        unsetenv(variables[i]);
    }
}

int systemd_listen_fd(void)
{
    return listen_fd;
}

uint64_t systemd_watchdog_ms(void)
{
    return watchdog_ms;
}

/* A socket for each message: they are rare, and the manager's own may be a new one after it restarts. */
static void send_datagram(const char *text, size_t bytes)
{
    const struct timeval wait = {.tv_usec = SYSTEMD_NOTIFY_WAIT_MS * 1000};
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool sent = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait)) == 0 &&
                sendto(fd, text, bytes, MSG_NOSIGNAL, (const struct sockaddr *)&notify_address, notify_address_bytes) ==
                    (ssize_t)bytes;
    if (!sent) {
        char shown[128];
        log_warning("notify_failed", "text=%s error=\"%s\"", log_quote(text, shown, sizeof(shown)), strerror(errno));
    }
    if (fd >= 0) {
        close(fd);
    }
}

void systemd_notify(const char *format, ...)
{
    if (notify_address_bytes == 0) {
        return;
    }
    char text[SYSTEMD_NOTIFY_BYTES + 1];
    va_list args;
    va_start(args, format);
    int bytes = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (bytes < 0 || (size_t)bytes >= sizeof(text)) {
        log_warning("notify_failed", "error=\"the text is longer than %d bytes\" bytes=%d", SYSTEMD_NOTIFY_BYTES,
                    bytes);
        return;
    }
    send_datagram(text, (size_t)bytes);
}
