/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What systemd expects of a service: readiness and watchdog datagrams to $NOTIFY_SOCKET (path or @abstract) and sockets
 * passed in from descriptor 3 on. The documented protocols of sd_notify(3) and sd_listen_fds(3), no library.
 *
 * Owns:     nothing; the caller of systemd_listen_fd owns the socket.
 * Thread:   the main thread.
 * Lifetime: the environment is read once, at systemd_init, and the variables are removed from it.
 * Errors:   logged; a service manager that does not listen is no reason to stop.
 */
#ifndef MLACAT_TOP_SYSTEMD_H
#define MLACAT_TOP_SYSTEMD_H

#include <stdint.h>

void systemd_init(void);

/* The listening socket that was passed to this process, CLOEXEC; -1 if none. More than one, or LISTEN_PID of another
 * process: -1, logged. */
int systemd_listen_fd(void);

/* Half of $WATCHDOG_USEC if $WATCHDOG_PID is us or not set, in milliseconds; 0: no watchdog. */
uint64_t systemd_watchdog_ms(void);

/* Sends "KEY=value" lines, printf style, as one datagram; nothing where $NOTIFY_SOCKET is not set. Waits at most
 * SYSTEMD_NOTIFY_WAIT_MS for a service manager that does not read. Texts longer than SYSTEMD_NOTIFY_BYTES are not sent.
 */
#define SYSTEMD_NOTIFY_WAIT_MS 100
#define SYSTEMD_NOTIFY_BYTES 1024
__attribute__((format(printf, 1, 2))) void systemd_notify(const char *format, ...);

#endif
