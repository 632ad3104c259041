/* SPDX-License-Identifier: Apache-2.0 */
#include "control.h"

#include <string.h>
#include <time.h>

#include "clock.h"
#include "thread.h"

#define NS_PER_S 1000000000

static uint64_t tend(struct control *control)
{
    return control->device ? control->ops->tend(control->device) : DEVICE_TEND_LATER;
}

/* With the mutex held: sleeps until a job is posted or the device wants to be tended again. */
static void wait_for_job(struct control *control)
{
    pthread_mutex_unlock(&control->mutex);
    uint64_t in_ns = tend(control);
    pthread_mutex_lock(&control->mutex);
    if (!list_empty(&control->todo) || control->stopping) {
        return;
    }
    if (in_ns == DEVICE_TEND_LATER) {
        pthread_cond_wait(&control->posted, &control->mutex);
        return;
    }
    uint64_t until_ns = clock_now_ns() + in_ns;
    struct timespec until = {.tv_sec = (time_t)(until_ns / NS_PER_S), .tv_nsec = (long)(until_ns % NS_PER_S)};
    pthread_cond_timedwait(&control->posted, &control->mutex, &until);
}

static void *control_main(void *arg)
{
    struct control *control = arg;
    pthread_mutex_lock(&control->mutex);
    for (;;) {
        struct list_node *node = list_take(&control->todo);
        if (!node) {
            if (control->stopping) {
                break;
            }
            wait_for_job(control);
            continue;
        }
        pthread_mutex_unlock(&control->mutex);
        struct control_job *job = LIST_ENTRY(node, struct control_job, link);
        job->run(job);
        tend(control); /* jobs may come without a pause */
        pthread_mutex_lock(&control->mutex);
        list_append(&control->finished, &job->link);
        atomic_store(&control->any_finished, true);
        pthread_mutex_unlock(&control->mutex);
        loop_bell_ring(control->bell);
        pthread_mutex_lock(&control->mutex);
    }
    pthread_mutex_unlock(&control->mutex);
    return NULL;
}

enum mlacat_status control_start(struct control *control, const struct device_ops *ops, struct device *device,
                                 struct loop_bell *bell, struct error *err)
{
    pthread_condattr_t clock;
    *control = (struct control){.bell = bell, .ops = ops, .device = device};
    list_init(&control->todo);
    list_init(&control->finished);
    pthread_mutex_init(&control->mutex, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC); /* that of clock_now_ns */
    pthread_cond_init(&control->posted, &clock);
    pthread_condattr_destroy(&clock);
    return thread_start(&control->thread, "mlacat-control", control_main, control, err);
}

void control_stop(struct control *control)
{
    pthread_mutex_lock(&control->mutex);
    control->stopping = true;
    pthread_cond_signal(&control->posted);
    pthread_mutex_unlock(&control->mutex);
    pthread_join(control->thread, NULL);
    pthread_cond_destroy(&control->posted);
    pthread_mutex_destroy(&control->mutex);
}

void control_post(struct control *control, struct control_job *job)
{
    pthread_mutex_lock(&control->mutex);
    list_append(&control->todo, &job->link);
    pthread_cond_signal(&control->posted);
    pthread_mutex_unlock(&control->mutex);
}

bool control_take(struct control *control)
{
    struct list_node taken;
    /* Sequentially consistent with the loop's `asleep`, like a mailbox (doorbell.h). */
    if (!atomic_load(&control->any_finished)) {
        return false;
    }
    list_init(&taken);
    pthread_mutex_lock(&control->mutex);
    atomic_store(&control->any_finished, false);
    struct list_node *node;
    while ((node = list_take(&control->finished))) {
        list_append(&taken, node);
    }
    pthread_mutex_unlock(&control->mutex);
    while ((node = list_take(&taken))) {
        struct control_job *job = LIST_ENTRY(node, struct control_job, link);
        job->done(job);
    }
    return true;
}
