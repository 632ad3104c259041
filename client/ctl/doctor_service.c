/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon as a client meets it: its socket, its greeting, its devices. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common.h"
#include "doctor.h"

#define SOCKET_SYSTEM "/run/mlacat/mlacatd.sock"
#define CONNECT_MS 2000 /* a daemon that says nothing for so long is stopped or stuck */

/* As libmlacat chooses it. */
static void choose_socket(const struct ctl_options *options, char path[DOCTOR_PATH_BYTES])
{
    const char *named = options->socket ? options->socket : getenv("MLACAT_SOCKET");
    const char *folder = getenv("XDG_RUNTIME_DIR");

    if (named && named[0]) {
        snprintf(path, DOCTOR_PATH_BYTES, "%s", named);
        return;
    }
    if (folder && folder[0] == '/') {
        snprintf(path, DOCTOR_PATH_BYTES, "%s/mlacat/mlacatd.sock", folder);
        if (access(path, F_OK) == 0)
            return;
    }
    snprintf(path, DOCTOR_PATH_BYTES, "%s", SOCKET_SYSTEM);
}

/* ----------------------------------------------------------------------------------------------------- the socket */

static void judge_rights(struct doctor *doctor, const char *path, const struct stat *st)
{
    unsigned mode = st->st_mode & 07777;
    bool allowed = faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) == 0;
    enum doctor_state state = !allowed ? DOCTOR_FAIL : (mode & 0222) == 0 || (mode & 0002) ? DOCTOR_WARN : DOCTOR_OK;

    doctor_found(doctor, "socket", state, "%.200s: mode %04o, owner %u:%u; this user (uid %u, gid %u) %s connect", path,
                 mode, st->st_uid, st->st_gid, (unsigned)geteuid(), (unsigned)getegid(), allowed ? "may" : "may not");
    if (!allowed)
        doctor_advise(doctor,
                      "become a member of group %u, or set socket_mode and allow_gids of mlacatd (SocketMode= where "
                      "systemd passes the socket); see also the folders above the socket",
                      st->st_gid);
    else if ((mode & 0222) == 0)
        doctor_advise(doctor, "only root can connect: nobody may write to the socket; set socket_mode = 0660");
    else if (mode & 0002)
        doctor_advise(doctor, "every user of this machine reaches the socket, and only mlacatd's own list "
                              "(allow_uids, allow_gids) keeps strangers out; set socket_mode = 0660");
}

static bool check_socket(struct doctor *doctor, const char *path)
{
    struct stat st;

    if (stat(path, &st) < 0) {
        doctor_found(doctor, "socket", DOCTOR_FAIL, "%.200s: %s", path, strerror(errno));
        if (errno == ENOENT)
            doctor_advise(doctor, "start mlacatd, or name its socket with --socket or MLACAT_SOCKET");
        else
            doctor_advise(doctor, "look at the rights of the folders above it, or name another socket with --socket");
        return false;
    }
    if (!S_ISSOCK(st.st_mode)) {
        doctor_found(doctor, "socket", DOCTOR_FAIL, "%.200s is no socket", path);
        doctor_advise(doctor, "name the socket of mlacatd with --socket or MLACAT_SOCKET");
        return false;
    }
    judge_rights(doctor, path, &st);
    return true;
}

/* ----------------------------------------------------------------------------------------------------- the process */

/* False: there is no such process in our pid namespace, or it is something else. */
static bool is_mlacatd(pid_t pid, uid_t *uid)
{
    char path[64];
    char name[32] = "";
    struct stat st;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
    file = pid > 0 ? fopen(path, "re") : NULL;
    if (!file)
        return false;
    if (fscanf(file, "%31s", name) != 1 || fstat(fileno(file), &st) < 0)
        name[0] = '\0';
    fclose(file);
    *uid = st.st_uid;
    return strcmp(name, "mlacatd") == 0;
}

/* The socket tells who listened, which with socket activation is the service manager; the daemon tells its pid, which
 * in another pid namespace is another process's. */
static void identify(struct doctor *doctor, const char *path, pid_t told)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred peer = {0};
    socklen_t size = sizeof(peer);
    uid_t uid;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool known;

    memcpy(address.sun_path, path, strnlen(path, sizeof(address.sun_path) - 1));
    known = fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0 &&
            getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0;
    if (fd >= 0)
        close(fd);
    doctor->uid = peer.uid;
    doctor->uid_known = known && peer.pid == 0; /* in no pid namespace of ours: nobody of this one listened for it */
    if (known && is_mlacatd(peer.pid, &uid))
        doctor->pid = peer.pid;
    else if (is_mlacatd(told, &uid))
        doctor->pid = told;
    if (doctor->pid != 0) {
        doctor->uid = uid;
        doctor->uid_known = true;
    }
}

/* ----------------------------------------------------------------------------------------------------- the greeting */

static void advise_connection(struct doctor *doctor, enum mlacat_status status)
{
    switch (status) {
    case MLACAT_PERMISSION_DENIED:
        doctor_advise(doctor, "run it as a user that may connect, or add this one to allow_uids or allow_gids of "
                              "mlacatd");
        break;
    case MLACAT_RESOURCE_EXHAUSTED:
        doctor_advise(doctor, "end clients that are not needed, or raise max_clients of mlacatd");
        break;
    case MLACAT_DEADLINE_EXCEEDED:
        doctor_advise(doctor, "is mlacatd stopped (SIGSTOP, a debugger) or stuck? Look at its log, restart it");
        break;
    case MLACAT_FAILED_PRECONDITION:
        doctor_advise(doctor, "install the same version of mlacatd and mlacatctl");
        break;
    default:
        doctor_advise(doctor, "start mlacatd; its log says why it ended");
        break;
    }
}

static bool check_connection(struct doctor *doctor, struct mlacat_server_info *info)
{
    struct mlacat_connect_options connect = ctl_connect_options(doctor->options, "mlacatctl doctor");
    enum mlacat_status status;

    if (connect.connect_timeout_ms > CONNECT_MS)
        connect.connect_timeout_ms = CONNECT_MS;
    connect.reconnect_timeout_ms = 1;
    status = mlacat_connect(&connect, &doctor->client);
    if (status == MLACAT_OK)
        status = mlacat_server_info(doctor->client, info);
    if (status == MLACAT_OK)
        return true;
    doctor_found(doctor, "connection", DOCTOR_FAIL, "%s: %s", mlacat_status_name(status), mlacat_error_message());
    advise_connection(doctor, status);
    return false;
}

static void check_health(struct doctor *doctor)
{
    struct mlacat_health health = {.size = sizeof(health)};
    enum mlacat_status status = mlacat_health(doctor->client, &health);

    if (status != MLACAT_OK) {
        doctor_found(doctor, "ready", DOCTOR_FAIL, "%s: %s", mlacat_status_name(status), mlacat_error_message());
        doctor_advise(doctor, "look at the log of mlacatd");
    } else if (!health.ready) {
        doctor_found(doctor, "ready", DOCTOR_FAIL, "mlacatd takes no calls: %s", health.reason);
        doctor_advise(doctor, "%s", health.live ? "wait, or look at the devices below" : "restart mlacatd");
    } else {
        doctor_found(doctor, "ready", DOCTOR_OK, "mlacatd takes calls");
    }
}

static void check_device(struct doctor *doctor, const struct mlacat_device_info *device, bool any_available)
{
    doctor->serves_gpu = doctor->serves_gpu || strcmp(device->kind, "cuda") == 0;
    if (device->available) {
        doctor_found(doctor, "device", DOCTOR_OK, "%s (%s, %s), %u worker threads", device->uuid, device->kind,
                     device->name, device->workers);
        return;
    }
    doctor_found(doctor, "device", any_available ? DOCTOR_WARN : DOCTOR_FAIL, "%s (%s) is absent: %s", device->uuid,
                 device->kind, device->reason);
    doctor_advise(doctor, "mlacatd looks for it again each second; if it is not of this machine, correct the option "
                          "device");
}

static void check_devices(struct doctor *doctor, const struct mlacat_server_info *info)
{
    struct mlacat_device_info device;
    bool any_available = false;

    for (uint32_t i = 0; i < info->devices; i++) {
        device = (struct mlacat_device_info){.size = sizeof(device)};
        if (mlacat_device_info(doctor->client, i, &device) == MLACAT_OK)
            any_available = any_available || device.available;
    }
    for (uint32_t i = 0; i < info->devices; i++) {
        device = (struct mlacat_device_info){.size = sizeof(device)};
        if (mlacat_device_info(doctor->client, i, &device) == MLACAT_OK)
            check_device(doctor, &device, any_available);
    }
}

static void skip_all(struct doctor *doctor, const char *const *checks, size_t nr, const char *why)
{
    for (size_t i = 0; i < nr; i++)
        doctor_found(doctor, checks[i], DOCTOR_SKIPPED, "%s", why);
}

void doctor_service(struct doctor *doctor)
{
    static const char *const after_socket[] = {"connection", "version", "ready", "device"};
    struct mlacat_server_info info = {.size = sizeof(info)};
    char path[DOCTOR_PATH_BYTES];

    choose_socket(doctor->options, path);
    if (!check_socket(doctor, path)) {
        skip_all(doctor, after_socket, 4, "there is no socket");
        return;
    }
    if (!check_connection(doctor, &info)) {
        identify(doctor, path, 0);
        skip_all(doctor, after_socket + 1, 3, "there is no connection");
        return;
    }
    identify(doctor, path, (pid_t)info.pid);
    doctor_found(doctor, "connection", DOCTOR_OK, "greeted by pid %u%s", info.pid,
                 doctor->pid == 0                 ? ", which is in another pid namespace"
                 : doctor->pid == (pid_t)info.pid ? ""
                                                  : " (of its own pid namespace)");
    if (strcmp(info.version, mlacat_version()) == 0) {
        doctor_found(doctor, "version", DOCTOR_OK, "mlacatd and libmlacat are %s", info.version);
    } else {
        doctor_found(doctor, "version", DOCTOR_WARN, "mlacatd is %s, libmlacat %s", info.version, mlacat_version());
        doctor_advise(doctor, "install the same version of both; after an upgrade restart mlacatd and its clients");
    }
    check_health(doctor);
    check_devices(doctor, &info);
}
