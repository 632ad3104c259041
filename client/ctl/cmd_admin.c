/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <unistd.h>

#include "common.h"
#include "guard.h"
#include "measure.h"

#define POLL_US 20000
/* A daemon that takes longer for an answer while it drains is stuck. */
#define STUCK_MS 1000

/*
 * Whether `pid` still is the daemon and has not ended (a zombie has: it only waits for its parent). It may be a number
 * of another pid namespace: then the lost connection must do.
 */
static bool runs(uint32_t pid)
{
    static const char name[] = "(mlacatd) ";
    char path[64];
    char line[128] = "";
    const char *found;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%u/stat", pid);
    file = fopen(path, "re");
    if (!file)
        return false;
    if (!fgets(line, sizeof(line), file))
        line[0] = '\0';
    fclose(file);
    found = strstr(line, name);
    return found && !strchr("ZX", found[strlen(name)]);
}

/* Whether the daemon that was drained has ended the connection; another one that took its place does not count. */
static bool connection_lost(struct mlacat_client *client, const struct mlacat_server_info *before)
{
    struct mlacat_health health = {.size = sizeof(health)};
    struct mlacat_server_info now = {.size = sizeof(now)};

    if (mlacat_health(client, &health) != MLACAT_OK || mlacat_server_info(client, &now) != MLACAT_OK)
        return true;
    return memcmp(now.boot_id, before->boot_id, sizeof(now.boot_id)) != 0;
}

static bool wait_for_exit(struct mlacat_client *client, const struct mlacat_server_info *server, double seconds)
{
    uint64_t until = measure_now_ns() + (uint64_t)(seconds * 1e9);

    guard_start((uint64_t)(seconds * 1e3) + STUCK_MS, STDERR_FILENO, CTL_FAILED,
                "mlacatctl: mlacatd (pid %u) drains, but has stopped to answer, and has not exited within %g s\n",
                server->pid, seconds);
    while (!connection_lost(client, server)) {
        if (measure_now_ns() >= until)
            return false;
        usleep(POLL_US);
    }
    while (runs(server->pid)) {
        if (measure_now_ns() >= until)
            return false;
        usleep(POLL_US);
    }
    guard_stop();
    return true;
}

static void print_drain(const struct ctl_options *options, bool exited)
{
    const char *state = exited ? "exited" : "draining";

    if (options->json)
        ctl_print_json(json_pack("{s:s}", "state", state));
    else
        puts(state);
}

int cmd_drain(const struct ctl_options *options)
{
    /* The wait must see the daemon go, not a daemon that systemd starts in its place. */
    struct mlacat_connect_options connect = ctl_connect_options(options, "mlacatctl drain");
    struct mlacat_server_info server = {.size = sizeof(server)};
    struct mlacat_client *client = NULL;
    enum mlacat_status status;
    bool exited = false;

    connect.reconnect_timeout_ms = 1;
    status = mlacat_connect(&connect, &client);
    if (status != MLACAT_OK) {
        ctl_fail("cannot connect", status);
        return CTL_UNREACHABLE;
    }
    status = mlacat_server_info(client, &server);
    if (status == MLACAT_OK)
        status = mlacat_drain(client);
    if (status != MLACAT_OK) {
        ctl_fail("drain", status);
        mlacat_disconnect(client);
        return CTL_FAILED;
    }
    guard_stop();
    if (options->wait_s >= 0)
        exited = wait_for_exit(client, &server, options->wait_s);
    mlacat_disconnect(client);
    print_drain(options, exited);
    if (options->wait_s < 0 || exited)
        return CTL_OK;
    fprintf(stderr, "mlacatctl: mlacatd (pid %u) has not exited within %g s; calls may still be in flight\n",
            server.pid, options->wait_s);
    return CTL_FAILED;
}

int cmd_log_level(const struct ctl_options *options)
{
    struct mlacat_client *client = NULL;
    enum mlacat_status status;
    int result = CTL_OK;

    if (!ctl_connect(options, &client))
        return CTL_UNREACHABLE;
    status = mlacat_set_log_level(client, options->argument);
    if (status != MLACAT_OK)
        result = ctl_fail("log-level", status);
    else if (options->json)
        ctl_print_json(json_pack("{s:s}", "log_level", options->argument));
    else
        printf("log level is %s\n", options->argument);
    mlacat_disconnect(client);
    return result;
}
