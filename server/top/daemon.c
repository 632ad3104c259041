/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon.h"

#include <assert.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "closer.h"
#include "log.h"
#include "session.h"
#include "systemd.h"
#include "thread.h"

#define PROGRESS_MS 1000
#define CLOSE_TIMEOUT_MS 1000 /* for the last words to clients: closing an unread socket would lose them */
#define STOP_TIMEOUT_MS 5000  /* for what is at the devices when the sessions have ended */
#define OPERATOR_CLIENTS 2    /* beyond max_clients: a full service can still be asked how it is, and drained */

static const char *const state_names[] = {"starting", "serving", "draining", "stopping", "stopped"};

static void set_state(struct daemon *daemon, enum daemon_state state)
{
    assert(state > daemon->state);
    log_info("state", "from=%s to=%s", state_names[daemon->state], state_names[state]);
    daemon->state = state;
}

/* --------------------------------------------------------------------------------------------- clients */

/* Tells a client that is not let in why, as far as its socket takes it. */
static void refuse(struct daemon *daemon, int fd, const struct peer *peer, const struct error *why)
{
    daemon->service.clients_refused++;
    log_warning("client_refused", "pid=%d uid=%u status=%s reason=%s", (int)peer->pid, peer->uid,
                status_name(why->code), log_text(why->message));
    size_t size = wire_encode_answer(daemon->service.packet, 0, why);
    ssize_t sent = send(fd, daemon->service.packet, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)sent;
    closer_hang_up(fd, peer->uid);
}

static void on_client(void *owner, int fd, const struct peer *peer)
{
    struct daemon *daemon = owner;
    struct service *service = &daemon->service;
    struct error err;
    if (!peer_allowed(peer, &daemon->config.allow)) {
        error_set(&err, MLACAT_PERMISSION_DENIED,
                  "user %u may not use this service: ask its operator for allow_uids or allow_gids", peer->uid);
        refuse(daemon, fd, peer, &err);
    } else if (service->sessions_nr >= service->limits.clients + (peer_is_operator(peer) ? OPERATOR_CLIENTS : 0)) {
        error_set_scoped(&err, MLACAT_RESOURCE_EXHAUSTED, MLACAT_SCOPE_SESSION,
                         "%u clients are connected, which is the limit: disconnect one, or raise max_clients",
                         service->sessions_nr);
        refuse(daemon, fd, peer, &err);
    } else {
        service->clients_total++;
        session_new(service, fd, peer);
    }
}

static void set_limits(struct daemon *daemon)
{
    const struct config *config = &daemon->config;
    daemon->service.limits = (struct service_limits){
        .clients = config->max_clients,
        .hello_timeout_ms = config->hello_timeout_ms,
        .client = {.streams = config->max_streams,
                   .buffers = config->max_buffers,
                   .mapped_bytes = config->max_mapped,
                   .stream_calls = config->max_stream_calls,
                   .calls = config->max_calls,
                   .events = config->max_events},
    };
}

/* --------------------------------------------------------------------------------------------- drain and stop */

static void on_listener_closed(void *owner)
{
    (void)owner; /* its memory is the daemon's */
}

static void close_listener(struct daemon *daemon)
{
    if (daemon->listening) {
        daemon->listening = false;
        listener_close(&daemon->listener);
    }
}

/* A call that a device is at cannot be taken back; a process can. */
static void on_stop_timeout(uv_timer_t *timer)
{
    struct daemon *daemon = timer->data;
    log_error("stop_timeout", "calls_at_workers=%u sessions=%u", service_calls_at_workers(&daemon->service),
              daemon->service.sessions_nr);
    daemon->exit_code = 1;
    daemon_log_exit(daemon);
    _exit(1);
}

static void stop_serving(struct daemon *daemon)
{
    set_state(daemon, DAEMON_STOPPING);
    uv_timer_start(&daemon->drain, on_stop_timeout, STOP_TIMEOUT_MS, 0);
    struct list_node *node = daemon->service.sessions.next;
    while (node != &daemon->service.sessions) {
        struct session *session = LIST_ENTRY(node, struct session, link);
        node = node->next;
        session_end(session, NULL);
    }
}

/* Nothing can be done with a lost device but to start again: a supervisor does that, clients come back by themselves.
 */
static void on_device_lost(void *owner, const struct error *why)
{
    struct daemon *daemon = owner;
    if (daemon->exit_code == 0) {
        log_error("device_lost", "status=%s reason=%s", status_name(why->code), log_text(why->message));
        daemon->exit_code = 1;
        daemon->lost = *why;
    }
}

static void on_drain_timeout(uv_timer_t *timer)
{
    struct daemon *daemon = timer->data;
    log_warning("drain_timeout", "unanswered_calls=%u after_ms=%u", service_calls(&daemon->service),
                daemon->config.drain_timeout_ms);
    stop_serving(daemon);
}

static void start_drain(void *owner)
{
    struct daemon *daemon = owner;
    if (daemon->state != DAEMON_SERVING) {
        return;
    }
    set_state(daemon, DAEMON_DRAINING);
    systemd_notify("STOPPING=1\nSTATUS=draining, %u calls to answer", service_calls(&daemon->service));
    daemon->service.draining = true;
    devices_give_up(&daemon->devices);
    service_drain_rings(&daemon->service);
    close_listener(daemon);
    uv_timer_start(&daemon->drain, on_drain_timeout, daemon->config.drain_timeout_ms, 0);
}

static void close_handle(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle)) {
        uv_close(handle, NULL);
    }
}

/* Moves on when what a state waits for has happened. */
static void check_progress(struct daemon *daemon)
{
    if (daemon->exit_code != 0) {
        start_drain(daemon);
    }
    if (daemon->state == DAEMON_DRAINING && service_calls(&daemon->service) == 0) {
        stop_serving(daemon);
    }
    if (daemon->state == DAEMON_STOPPING && daemon->service.sessions_nr == 0 && devices_idle(&daemon->devices)) {
        set_state(daemon, DAEMON_STOPPED);
        uv_walk(&daemon->loop, close_handle, NULL);
    }
}

/* --------------------------------------------------------------------------------------------- the loop's sleep */

/* Of calls that come through rings the loop does not hear. */
static bool is_worth_watching(const struct daemon *daemon)
{
    return service_calls_at_workers(&daemon->service) > 0 || service_has_rings(&daemon->service) ||
           devices_jobs(&daemon->devices) > 0;
}

static void on_turn(void *owner)
{
    struct daemon *daemon = owner;
    check_progress(daemon);
    if (daemon->progress_ms != 0 && !uv_is_active((uv_handle_t *)&daemon->progress) && daemon->state < DAEMON_STOPPED &&
        is_worth_watching(daemon)) {
        uv_timer_again(&daemon->progress);
    }
}

/* Runs while there is something to do, or always with a watchdog: systemd hears from us only while the workers and the
 * control threads move. */
static void on_progress(uv_timer_t *timer)
{
    struct daemon *daemon = timer->data;
    bool stuck = devices_stuck(&daemon->devices);
    if (stuck && !daemon->service.stuck) {
        log_error("stuck", "calls=%u control_jobs=%u for_ms=%lu", service_calls_at_workers(&daemon->service),
                  devices_jobs(&daemon->devices), (unsigned long)daemon->progress_ms);
    }
    daemon->service.stuck = stuck;
    if (daemon->watchdog && !stuck) {
        systemd_notify("WATCHDOG=1");
    }
    if (!daemon->watchdog && !stuck && !is_worth_watching(daemon)) {
        uv_timer_stop(timer);
    }
}

/* --------------------------------------------------------------------------------------------- signals */

/* The first one at all times, the others once there is something to end. */
static const int signal_numbers[] = {SIGHUP, SIGTERM, SIGINT};
#define SIGNALS_NR 3

static void reload(struct daemon *daemon)
{
    struct error err;
    systemd_notify("RELOADING=1");
    if (config_reload(&daemon->config, daemon->argc, daemon->argv, &err) != MLACAT_OK) {
        log_error("reload_failed", "status=%s reason=%s kept=\"the configuration in force\"", status_name(err.code),
                  log_text(err.message));
    } else {
        set_limits(daemon);
        devices_reload(&daemon->devices, &daemon->config);
        log_set_level(daemon->config.log_level);
    }
    systemd_notify("READY=1");
}

static void on_signal(uv_signal_t *handle, int signal)
{
    struct daemon *daemon = handle->data;
    if (signal == SIGHUP) {
        if (daemon->state == DAEMON_SERVING) {
            reload(daemon);
        }
        return;
    }
    if (daemon->state == DAEMON_SERVING) {
        log_info("signal", "number=%d action=drain", signal);
        start_drain(daemon);
        return;
    }
    log_warning("signal", "number=%d action=exit unanswered_calls=%u", signal, service_calls(&daemon->service));
    _exit(1);
}

/* --------------------------------------------------------------------------------------------- start */

static void init_loop(struct daemon *daemon)
{
    uv_loop_t *loop = &daemon->loop;
    uv_loop_init(loop);
    loop_sleep_init(&daemon->sleep, loop, &daemon->service, devices_poll(&daemon->config),
                    config_loop_spin_ns(&daemon->config), on_turn, daemon);
    uv_timer_init(loop, &daemon->progress);
    uv_timer_init(loop, &daemon->drain);
    devices_init(&daemon->devices, loop);
    daemon->progress.data = daemon;
    daemon->drain.data = daemon;
    for (int i = 0; i < SIGNALS_NR; i++) {
        uv_signal_init(loop, &daemon->signals[i]);
        daemon->signals[i].data = daemon;
    }
    uv_signal_start(&daemon->signals[0], on_signal, signal_numbers[0]); /* the loop comes to it */
    signal(SIGPIPE, SIG_IGN);
}

/* A driver may take its time, or never come back; and the first process of a container that has no handler is not ended
 * by these signals. */
static void end_start(int signal)
{
    (void)signal;
    _exit(0);
}

static enum mlacat_status start_devices(struct daemon *daemon, struct error *err)
{
    for (int i = 1; i < SIGNALS_NR; i++) {
        signal(signal_numbers[i], end_start);
    }
    if (devices_start(&daemon->devices, &daemon->config, &daemon->sleep.bell, err) != MLACAT_OK) {
        return err->code;
    }
    for (int i = 1; i < SIGNALS_NR; i++) {
        uv_signal_start(&daemon->signals[i], on_signal, signal_numbers[i]);
    }
    return MLACAT_OK;
}

/* Every client costs descriptors, and one batch of packets may bring a thousand; not more than the closer has room
 * for. */
static void set_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max < CLOSER_FDS ? limit.rlim_max : CLOSER_FDS;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static void start_progress(struct daemon *daemon)
{
    uint64_t watchdog_ms = systemd_watchdog_ms();
    daemon->watchdog = watchdog_ms != 0;
    daemon->progress_ms = watchdog_ms != 0 ? watchdog_ms : PROGRESS_MS;
    uv_timer_start(&daemon->progress, on_progress, daemon->progress_ms, daemon->progress_ms);
}

enum mlacat_status daemon_init(struct daemon *daemon, const struct config *config, int argc, char *const argv[],
                               struct error *err)
{
    *daemon = (struct daemon){.config = *config, .argc = argc, .argv = argv, .service.pidfd = -1};
    systemd_init();
    set_file_limit();
    init_loop(daemon);
    if (start_devices(daemon, err) != MLACAT_OK) {
        goto fail;
    }
    struct service *service = &daemon->service;
    service->loop = &daemon->loop;
    service->engines = daemon->devices.engines;
    service->engines_nr = daemon->devices.nr;
    service->bell = &daemon->sleep.bell;
    service->on_drain = start_drain;
    service->on_device_lost = on_device_lost;
    service->owner = daemon;
    service->pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    set_limits(daemon);
    if (getrandom(service->boot_id, sizeof(service->boot_id), 0) != (ssize_t)sizeof(service->boot_id)) {
        error_set(err, MLACAT_INTERNAL, "the system gives no random bytes for the boot id");
        goto fail;
    }
    if (service_init(service, err) != MLACAT_OK) {
        goto fail;
    }
    daemon->listener.owner = daemon;
    daemon->listener.on_client = on_client;
    daemon->listener.on_closed = on_listener_closed;
    if (listener_open(&daemon->listener, &daemon->loop, config->socket, config->socket_mode, systemd_listen_fd(),
                      err) != MLACAT_OK) {
        goto fail;
    }
    daemon->listening = true;
    start_progress(daemon);
    set_state(daemon, DAEMON_SERVING);
    log_info("ready", "socket=%s version=" MLACAT_VERSION, daemon->listener.path);
    systemd_notify("READY=1\nSTATUS=serving on %s", daemon->listener.path);
    return MLACAT_OK;
fail:
    daemon_fini(daemon);
    return err->code;
}

void daemon_log_exit(const struct daemon *daemon)
{
    if (daemon->exit_code == 0) {
        log_info("exit", "code=0");
    } else if (daemon->lost.code == MLACAT_OK) {
        log_error("exit", "code=%d reason=\"a device did not let go in time\"", daemon->exit_code);
    } else {
        log_error("exit", "code=%d status=%s reason=%s", daemon->exit_code, status_name(daemon->lost.code),
                  log_text(daemon->lost.message));
    }
}

int daemon_run(struct daemon *daemon)
{
    uv_run(&daemon->loop, UV_RUN_DEFAULT);
    return daemon->exit_code;
}

static _Atomic bool devices_stopped;

/* What a device does to the end of the process nobody else can end. */
static void *end_late_stop(void *arg)
{
    struct daemon *daemon = arg;
    const struct timespec time = {.tv_sec = STOP_TIMEOUT_MS / 1000};
    nanosleep(&time, NULL);
    if (devices_stopped) {
        return NULL;
    }
    log_error("stop_timeout", "reason=\"the driver does not come back\"");
    daemon->exit_code = 1;
    daemon_log_exit(daemon);
    _exit(1);
}

/* The loop has ended, and its timers with it. */
static void stop_devices(struct daemon *daemon)
{
    pthread_t thread;
    struct error err;
    if (thread_start(&thread, "mlacat-stop", end_late_stop, daemon, &err) == MLACAT_OK) {
        pthread_detach(thread);
    }
    devices_stop(&daemon->devices);
    devices_stopped = true;
}

void daemon_fini(struct daemon *daemon)
{
    close_listener(daemon);
    uv_walk(&daemon->loop, close_handle, NULL);
    uv_run(&daemon->loop, UV_RUN_DEFAULT);
    service_fini(&daemon->service);
    if (daemon->service.pidfd >= 0) {
        close(daemon->service.pidfd);
    }
    stop_devices(daemon);
    uv_loop_close(&daemon->loop);
    closer_flush(CLOSE_TIMEOUT_MS);
}
