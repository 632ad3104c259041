/* SPDX-License-Identifier: Apache-2.0 */
#include "control.h"

#include <string.h>
#include <time.h>

#include "clock.h"
#include "min_max.h"
#include "thread.h"

#define NS_PER_S 1000000000
/* The longest job is to open a device: its kernels may take JIT_LIMIT_MS (cuda_jit.h) to build. */
#define STUCK_NS UINT64_C(30000000000)

/* What follows may take long; or nothing follows. */
static void note_busy(struct control *control, bool busy)
{
    atomic_store_explicit(&control->busy_ns, busy ? clock_now_ns() : 0, memory_order_relaxed);
}

static uint64_t tend(struct control *control)
{
    if (!control->device || atomic_load_explicit(&control->is_lost, memory_order_relaxed)) {
        return DEVICE_TEND_LATER;
    }
    note_busy(control, true);
    uint64_t in_ns = control->ops->tend(control->device, &control->lost);
    note_busy(control, false);
    if (control->lost.code != MLACAT_OK) {
        atomic_store(&control->is_lost, true); /* pairs with control_lost */
        loop_bell_ring(control->bell);
        return DEVICE_TEND_LATER;
    }
    return in_ns;
}

const struct error *control_lost(const struct control *control)
{
    return atomic_load(&control->is_lost) ? &control->lost : NULL;
}

/* How long the lane's next job is held back. */
static uint64_t held_ns(const struct control *control, const struct control_lane *lane, uint64_t now_ns)
{
    const struct control_job *job = LIST_ENTRY(lane->jobs.next, struct control_job, link);
    if (lane->hurried || control->stopping) {
        return 0;
    }
    if (lane->again_ns > now_ns) {
        return lane->again_ns - now_ns;
    }
    return job->is_import ? token_bucket_wait_ns(&lane->imports, control->import_rate, now_ns) : 0;
}

/* The job whose turn it is; NULL: none, and *in_ns when one that is held back will be. */
static struct control_job *take_job(struct control *control, uint64_t *in_ns)
{
    uint64_t now_ns = clock_now_ns();
    control->news = false;
    *in_ns = DEVICE_TEND_LATER;
    for (struct list_node *node = control->turns.next; node != &control->turns; node = node->next) {
        struct control_lane *lane = LIST_ENTRY(node, struct control_lane, turn);
        uint64_t held = held_ns(control, lane, now_ns);
        if (held == 0) {
            list_remove(&lane->turn);
            lane->running = true;
            return LIST_ENTRY(list_take(&lane->jobs), struct control_job, link);
        }
        *in_ns = min_u64(*in_ns, held);
    }
    return NULL;
}

/* With the mutex held: sleeps until there is news, a job is held back no more, or the device wants to be tended. */
static void wait_for_job(struct control *control, uint64_t in_ns)
{
    pthread_mutex_unlock(&control->mutex);
    in_ns = min_u64(in_ns, tend(control));
    pthread_mutex_lock(&control->mutex);
    if (control->news || control->stopping) {
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

/* Of a lane that is hurried the next client of its user pays. */
static void count_import(struct control *control, struct control_lane *lane)
{
    token_bucket_take(&lane->imports, control->import_rate, clock_now_ns());
    if (lane->hurried) {
        token_debts_add(&control->debts, lane->user, &lane->imports);
    }
}

/* The lane goes behind all others, also behind those that came while its job ran. false: the job is still its next. */
static bool end_turn(struct control *control, struct control_job *job)
{
    struct control_lane *lane = job->lane;
    bool again = job->again && !lane->hurried && !control->stopping;
    lane->running = false;
    if (again) {
        lane->again_ns = clock_now_ns() + CONTROL_AGAIN_NS;
        list_prepend(&lane->jobs, &job->link);
    } else if (job->is_import) {
        count_import(control, lane);
    }
    if (!list_empty(&lane->jobs)) {
        list_append(&control->turns, &lane->turn);
    }
    return !again;
}

static void *control_main(void *arg)
{
    struct control *control = arg;
    uint64_t in_ns;
    pthread_mutex_lock(&control->mutex);
    for (;;) {
        struct control_job *job = take_job(control, &in_ns);
        if (!job) {
            if (control->stopping) {
                break;
            }
            wait_for_job(control, in_ns);
            continue;
        }
        pthread_mutex_unlock(&control->mutex);
        job->again = false;
        note_busy(control, true);
        job->run(job);
        note_busy(control, false);
        tend(control); /* jobs may come without a pause */
        pthread_mutex_lock(&control->mutex);
        if (!end_turn(control, job)) {
            continue;
        }
        list_append(&control->finished, &job->link);
        atomic_store(&control->any_finished, true);
        pthread_mutex_unlock(&control->mutex);
        loop_bell_ring(control->bell);
        pthread_mutex_lock(&control->mutex);
    }
    pthread_mutex_unlock(&control->mutex);
    return NULL;
}

void control_lane_init(struct control_lane *lane)
{
    *lane = (struct control_lane){0};
    list_init(&lane->jobs);
    list_init(&lane->turn);
}

void control_lane_open(struct control *control, struct control_lane *lane, uint32_t user)
{
    pthread_mutex_lock(&control->mutex);
    lane->user = user;
    lane->imports = token_debts_get(&control->debts, user);
    pthread_mutex_unlock(&control->mutex);
}

enum mlacat_status control_start(struct control *control, const struct device_ops *ops, struct device *device,
                                 struct loop_bell *bell, struct error *err)
{
    pthread_condattr_t clock;
    *control =
        (struct control){.bell = bell, .ops = ops, .device = device, .import_rate = {.burst = CONTROL_IMPORT_BURST}};
    list_init(&control->turns);
    control_lane_init(&control->own_lane);
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

/* With the mutex held, which it gives back first: the thread that wakes shall not wait for it at once, and make this
 * one, the loop, wake it again. */
static void unlock_and_tell(struct control *control)
{
    control->news = true;
    pthread_mutex_unlock(&control->mutex);
    pthread_cond_signal(&control->posted);
}

void control_set_import_rate(struct control *control, uint32_t imports_per_s)
{
    pthread_mutex_lock(&control->mutex);
    control->import_rate.per_s = imports_per_s;
    unlock_and_tell(control);
}

void control_hurry(struct control *control, struct control_lane *lane)
{
    pthread_mutex_lock(&control->mutex);
    lane->hurried = true;
    token_debts_add(&control->debts, lane->user, &lane->imports);
    unlock_and_tell(control);
}

void control_post(struct control *control, struct control_job *job)
{
    struct control_lane *lane = job->lane ? job->lane : &control->own_lane;
    job->lane = lane;
    control->jobs_nr++;
    pthread_mutex_lock(&control->mutex);
    list_append(&lane->jobs, &job->link);
    if (!lane->running && list_empty(&lane->turn)) {
        list_append(&control->turns, &lane->turn);
    }
    unlock_and_tell(control);
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
        control->jobs_nr--;
        job->done(job);
    }
    return true;
}

bool control_stuck(const struct control *control)
{
    uint64_t busy_ns = atomic_load_explicit(&control->busy_ns, memory_order_relaxed);
    return busy_ns != 0 && clock_now_ns() - busy_ns >= STUCK_NS;
}
