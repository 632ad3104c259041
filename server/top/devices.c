/* SPDX-License-Identifier: Apache-2.0 */
#include "devices.h"

#include <sched.h>
#include <string.h>

#include "cpus.h"
#include "device.h"
#include "log.h"

#define RETRY_MS 1000
#define PIN_CPUS_MOST 3

enum worker_poll devices_poll(const struct config *config)
{
    static const enum worker_poll polls[] = {[CONFIG_POLL_SPIN] = WORKER_POLL_SPIN,
                                             [CONFIG_POLL_BALANCED] = WORKER_POLL_BALANCED,
                                             [CONFIG_POLL_SLEEP] = WORKER_POLL_SLEEP};
    return polls[config->poll];
}

void devices_init(struct devices *devices, uv_loop_t *loop)
{
    uv_timer_init(loop, &devices->retry);
    devices->retry.data = devices;
}

/* A GPU may come, or its driver be ready, later than we. */
static void on_retry(uv_timer_t *timer)
{
    struct devices *devices = timer->data;
    bool all = true;
    for (uint32_t i = 0; i < devices->nr; i++) {
        engine_retry(&devices->engines[i]);
        all &= devices->engines[i].available;
    }
    if (all) {
        uv_timer_stop(timer);
    }
}

void devices_give_up(struct devices *devices)
{
    uv_timer_stop(&devices->retry);
}

/* --------------------------------------------------------------------------------------------- start */

/* What the start of each engine needs. */
struct start {
    struct devices *devices;
    const struct config *config;
    struct loop_bell *bell;
};

static enum mlacat_status refuse_twice(const struct devices *devices, const struct engine *engine, struct error *err)
{
    for (uint32_t i = 0; i + 1 < devices->nr; i++) {
        if (strcmp(devices->engines[i].info.uuid, engine->info.uuid) == 0) {
            return error_set(err, MLACAT_INVALID_ARGUMENT, "device: %s is named twice: name it once",
                             engine->info.uuid);
        }
    }
    return MLACAT_OK;
}

static enum mlacat_status start_engine(const struct start *start, const struct device_ops *ops, const char *uuid,
                                       bool wait, struct error *err)
{
    struct devices *devices = start->devices;
    if (devices->nr == SERVICE_ENGINES_MAX) {
        return error_set(err, MLACAT_INVALID_ARGUMENT, "device: more than %u devices are named: run another daemon",
                         (unsigned)SERVICE_ENGINES_MAX);
    }
    struct engine *engine = &devices->engines[devices->nr];
    struct engine_options options = {.ops = ops,
                                     .uuid = uuid,
                                     .wait = wait,
                                     .workers = config_workers(start->config),
                                     .poll = devices_poll(start->config),
                                     .spin_ns = config_spin_ns(start->config),
                                     .import_rate = start->config->import_rate,
                                     .bell = start->bell};
    if (engine_start(engine, &options, err) != MLACAT_OK) {
        return err->code;
    }
    devices->nr++;
    if (engine->available) {
        log_info("device", "uuid=%s kind=%s name=\"%s\" workers=%u", engine->info.uuid, engine->info.kind,
                 engine->info.name, engine->workers_nr);
    } else {
        log_warning("device_absent", "uuid=%s reason=%s again_ms=%u", engine->info.uuid,
                    log_text(engine->absent_reason.message), RETRY_MS);
        uv_timer_start(&devices->retry, on_retry, RETRY_MS, RETRY_MS);
    }
    return refuse_twice(devices, engine, err);
}

/* The first GPU, or else the CPU. */
static enum mlacat_status start_auto(const struct start *start, struct error *err)
{
    enum mlacat_status status = start_engine(start, &device_cuda_ops, "", false, err);
    if (status != MLACAT_UNAVAILABLE) {
        return status;
    }
    log_info("device_absent", "kind=cuda reason=%s", log_text(err->message));
    return start_engine(start, &device_host_ops, "host", false, err);
}

/* Every GPU. */
static enum mlacat_status start_all(const struct start *start, struct error *err)
{
    char uuids[SERVICE_ENGINES_MAX][DEVICE_UUID_BYTES];
    uint32_t nr = device_cuda_list(uuids, SERVICE_ENGINES_MAX, err);
    if (nr == 0) {
        return err->code;
    }
    for (uint32_t i = 0; i < nr; i++) {
        if (start_engine(start, &device_cuda_ops, uuids[i], false, err) != MLACAT_OK) {
            return err->code;
        }
    }
    return MLACAT_OK;
}

static enum mlacat_status start_named(const struct start *start, struct error *err)
{
    char names[sizeof(start->config->device)];
    char *rest = names;
    memcpy(names, start->config->device, sizeof(names));
    for (char *name; (name = strsep(&rest, ", ")) != NULL;) {
        const struct device_ops *ops = strcmp(name, "host") == 0 ? &device_host_ops : &device_cuda_ops;
        if (name[0] != '\0' && start_engine(start, ops, name, true, err) != MLACAT_OK) {
            return err->code;
        }
    }
    if (start->devices->nr == 0) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "device = \"%s\" names no device: give auto, all, host or a GPU's UUID",
                         start->config->device);
    }
    return MLACAT_OK;
}

static enum mlacat_status start_engines(const struct start *start, struct error *err)
{
    if (strcmp(start->config->device, "auto") == 0) {
        return start_auto(start, err);
    }
    if (strcmp(start->config->device, "all") == 0) {
        return start_all(start, err);
    }
    return start_named(start, err);
}

/* The threads that start_engines starts get the CPUs of this one. With few CPUs the scheduler may put the loop and a
 * worker on one, taking turns, while a client's CPU sleeps and must be woken for each packet. */
enum mlacat_status devices_start(struct devices *devices, const struct config *config, struct loop_bell *bell,
                                 struct error *err)
{
    const struct start start = {.devices = devices, .config = config, .bell = bell};
    cpu_set_t first;
    cpu_set_t rest;
    if (config->pin == CONFIG_PIN_NEVER || !cpus_split(PIN_CPUS_MOST, &first, &rest)) {
        return start_engines(&start, err);
    }
    sched_setaffinity(0, sizeof(rest), &rest);
    enum mlacat_status status = start_engines(&start, err);
    sched_setaffinity(0, sizeof(first), &first);
    return status;
}

void devices_stop(struct devices *devices)
{
    while (devices->nr > 0) {
        engine_stop(&devices->engines[--devices->nr]);
    }
}

/* --------------------------------------------------------------------------------------------- running */

void devices_reload(struct devices *devices, const struct config *config)
{
    for (uint32_t i = 0; i < devices->nr; i++) {
        control_set_import_rate(&devices->engines[i].control, config->import_rate);
    }
}

bool devices_idle(const struct devices *devices)
{
    for (uint32_t i = 0; i < devices->nr; i++) {
        if (!engine_idle(&devices->engines[i])) {
            return false;
        }
    }
    return true;
}

bool devices_stuck(struct devices *devices)
{
    bool stuck = false;
    for (uint32_t i = 0; i < devices->nr; i++) {
        stuck |= engine_stuck(&devices->engines[i]);
    }
    return stuck;
}

uint32_t devices_jobs(const struct devices *devices)
{
    uint32_t jobs_nr = 0;
    for (uint32_t i = 0; i < devices->nr; i++) {
        jobs_nr += engine_jobs(&devices->engines[i]);
    }
    return jobs_nr;
}
