/* SPDX-License-Identifier: Apache-2.0 */
#include "loop_sleep.h"

#include "clock.h"

static void wake_loop(void *arg)
{
    struct loop_sleep *sleep = arg;
    uv_async_send(&sleep->wake);
}

static void on_wake(uv_async_t *async)
{
    (void)async; /* on_prepare looks at the mailboxes before every sleep */
}

static void on_busy(uv_idle_t *idle)
{
    (void)idle; /* while it is active, the loop does not wait for its sockets */
}

static bool is_worth_looking(const struct loop_sleep *sleep, uint64_t now_ns)
{
    switch (sleep->poll) {
    case WORKER_POLL_SPIN:
        return service_streams(sleep->service) > 0;
    case WORKER_POLL_BALANCED:
        return now_ns - sleep->last_event_ns < sleep->spin_ns && !spin_crowded(&sleep->spinner, now_ns);
    default:
        return false;
    }
}

static void on_prepare(uv_prepare_t *prepare)
{
    struct loop_sleep *sleep = prepare->data;
    bool any = service_take(sleep->service);
    uint64_t now_ns = clock_now_ns();
    if (any || sleep->service->had_packets) {
        sleep->last_event_ns = now_ns;
    }
    sleep->service->had_packets = false;
    sleep->on_turn(sleep->owner);
    if (uv_is_closing((uv_handle_t *)prepare)) {
        return; /* that was the last turn */
    }
    if (is_worth_looking(sleep, now_ns)) {
        uv_idle_start(&sleep->busy, on_busy);
        if (sleep->last_event_ns == now_ns) {
            spin_share(&sleep->spinner, now_ns);
        }
        spin_pause(&sleep->spinner, now_ns - sleep->last_event_ns);
        return;
    }
    uv_idle_stop(&sleep->busy);
    /* From here on the workers ring; what they finished before that is found now (doorbell.h). */
    atomic_store(&sleep->bell.asleep, 1);
    if (service_take(sleep->service)) {
        service_awake(sleep->service);
        uv_idle_start(&sleep->busy, on_busy);
    }
}

static void on_check(uv_check_t *check)
{
    struct loop_sleep *sleep = check->data;
    service_awake(sleep->service);
}

void loop_sleep_init(struct loop_sleep *sleep, uv_loop_t *loop, struct service *service, enum worker_poll poll,
                     uint64_t spin_ns, void (*on_turn)(void *owner), void *owner)
{
    *sleep =
        (struct loop_sleep){.service = service, .poll = poll, .spin_ns = spin_ns, .on_turn = on_turn, .owner = owner};
    sleep->bell.wake = wake_loop;
    sleep->bell.arg = sleep;
    uv_async_init(loop, &sleep->wake, on_wake);
    uv_prepare_init(loop, &sleep->prepare);
    uv_check_init(loop, &sleep->check);
    uv_idle_init(loop, &sleep->busy);
    sleep->prepare.data = sleep;
    sleep->check.data = sleep;
    uv_prepare_start(&sleep->prepare, on_prepare);
    uv_check_start(&sleep->check, on_check);
}
