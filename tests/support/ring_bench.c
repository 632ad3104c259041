/* SPDX-License-Identifier: Apache-2.0 */
#include "ring_bench.h"

#include "mlacat_ring.h"
#include "require.h"

void bench_open(struct bench *bench, const struct server *server)
{
    raw_open(&bench->raw, server->socket);
    raw_ring_must_open(&bench->raw, &bench->rings, &bench->ring);
    trial_make(&bench->trial, &small_shape);
    bench->buffer = raw_must_register(&bench->raw, bench->trial.fd, bench->trial.bytes);
}

void bench_close(struct bench *bench)
{
    trial_free(&bench->trial);
    raw_ring_close(&bench->ring);
    raw_rings_close(&bench->rings);
    raw_close(&bench->raw);
}

struct mlacat_ring_submission bench_entry(const struct bench *bench, uint64_t id)
{
    struct call call = trial_call(&bench->trial, bench->buffer, id);
    return raw_ring_entry(&call);
}

void bench_work(struct bench *bench, uint64_t id)
{
    struct mlacat_ring_submission entry = bench_entry(bench, id);
    trial_refill(&bench->trial, (uint32_t)id);
    raw_ring_send(&bench->ring, &entry);
    struct outcome outcome = raw_ring_wait(&bench->ring, id);
    REQUIRE(outcome.code == STATUS_OK, "%s", outcome.message);
    REQUIRE(trial_right(&bench->trial));
}

struct mlacat_ring_submission cancel_entry(uint64_t id, uint64_t call_id)
{
    return (struct mlacat_ring_submission){.call_id = id, .flags = MLACAT_RING_SUBMIT_CANCEL, .ready = call_id};
}

void bench_set_ready(struct bench *bench, uint64_t value)
{
    __atomic_store_n(&bench->ring.client->ready, value, __ATOMIC_RELEASE);
}

uint64_t bench_done(const struct bench *bench)
{
    return __atomic_load_n(&bench->ring.client->done, __ATOMIC_ACQUIRE);
}

void bench_wait_taken(const struct raw_ring *ring)
{
    WAIT_UNTIL(mlacat_ring_taken(ring->daemon) == ring->tail);
}
