/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common.h"
#include "guard.h"
#include "measure.h"

/* A daemon that is stopped or stuck accepts and then says nothing: the answer to that is ready before we ask. */
static void arm(const struct ctl_options *options)
{
    unsigned long long ms = options->timeout_ms;

    if (options->json)
        guard_start(ms, STDOUT_FILENO, CTL_UNREACHABLE,
                    "{\"reachable\": false, \"ready\": false, \"reason\": \"no answer within %llu ms\", "
                    "\"ms\": %llu.0}\n",
                    ms, ms);
    else
        guard_start(ms, STDOUT_FILENO, CTL_UNREACHABLE, "not reachable: no answer within %llu ms\n", ms);
}

static void print(const struct ctl_options *options, bool reachable, bool ready, const char *reason, double took_ms)
{
    if (options->json)
        ctl_print_json(
            json_pack("{s:b, s:b, s:s, s:f}", "reachable", reachable, "ready", ready, "reason", reason, "ms", took_ms));
    else if (ready)
        printf("ready: %s, %.1f ms\n", reason, took_ms);
    else
        printf("%s: %s\n", reachable ? "not ready" : "not reachable", reason);
}

/* Refused is not gone: whoever asks whether the daemon lives must not restart it for a full table. */
static bool is_gone(enum mlacat_status status)
{
    return status == MLACAT_UNAVAILABLE || status == MLACAT_DEADLINE_EXCEEDED;
}

static int refused(const struct ctl_options *options, enum mlacat_status status)
{
    if (is_gone(status))
        return CTL_UNREACHABLE;
    return options->alive ? CTL_OK : CTL_FAILED;
}

/* A daemon that answers is alive, unless it is its device that does not: then a restart is what helps. */
static int answered(const struct ctl_options *options, const struct mlacat_health *health)
{
    bool draining = strncmp(health->reason, "draining", strlen("draining")) == 0;

    return health->ready || (options->alive && draining) ? CTL_OK : CTL_FAILED;
}

int cmd_ping(const struct ctl_options *options)
{
    struct mlacat_connect_options connect = ctl_connect_options(options, "mlacatctl ping");
    struct mlacat_health health = {.size = sizeof(health)};
    struct mlacat_server_info info = {.size = sizeof(info)};
    struct mlacat_client *client = NULL;
    uint64_t begin = measure_now_ns();
    enum mlacat_status status;
    char text[160];
    double took_ms;

    connect.reconnect_timeout_ms = 1;
    arm(options);
    status = mlacat_connect(&connect, &client);
    if (status == MLACAT_OK)
        status = mlacat_health(client, &health);
    if (status == MLACAT_OK)
        status = mlacat_server_info(client, &info);
    took_ms = (double)(measure_now_ns() - begin) / 1e6;
    if (status != MLACAT_OK) {
        print(options, !is_gone(status), false, mlacat_error_message(), took_ms);
        mlacat_disconnect(client);
        return refused(options, status);
    }
    snprintf(text, sizeof(text), "mlacatd %s, pid %u", info.version, info.pid);
    print(options, true, health.ready != 0, health.ready ? text : health.reason, took_ms);
    mlacat_disconnect(client);
    return answered(options, &health);
}
