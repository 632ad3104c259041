/* SPDX-License-Identifier: Apache-2.0 */
#include "rings.h"

#include <assert.h>
#include <stdlib.h>

#include "engine.h"

enum mlacat_status rings_new(uint32_t rings_nr, uint32_t calls, struct rings **rings, struct error *err)
{
    assert(rings_nr <= RINGS_MAX);
    struct rings *made = calloc(1, sizeof(*made));
    if (!made) {
        return error_set(err, MLACAT_RESOURCE_EXHAUSTED, "the service has no memory for rings: go on without a ring");
    }
    if (buffer_table_init(&made->table, err) != MLACAT_OK ||
        ring_pages_new(rings_nr, calls, &made->pages, err) != MLACAT_OK) {
        buffer_table_fini(&made->table);
        free(made);
        return err->code;
    }
    *rings = made;
    return MLACAT_OK;
}

static void free_all(struct rings *rings)
{
    buffer_table_fini(&rings->table);
    ring_pages_free(rings->pages);
    free(rings);
}

static void run_release(struct control_job *job)
{
    struct rings_share *share = LIST_ENTRY(job, struct rings_share, job);
    const struct device_ops *ops = share->engine->ops;
    if (share->client_pages) {
        ops->pages_release(share->engine->device, share->client_pages);
    }
    if (share->daemon_pages) {
        ops->pages_release(share->engine->device, share->daemon_pages);
    }
}

static void on_release_done(struct control_job *job)
{
    struct rings_share *share = LIST_ENTRY(job, struct rings_share, job);
    struct rings *rings = share->rings;
    engine_count_rings(share->engine, -1);
    if (++rings->shares_gone == rings->shares_nr) {
        free_all(rings);
    }
}

void rings_free(struct rings *rings)
{
    if (rings->shares_nr == 0) {
        free_all(rings);
        return;
    }
    for (uint32_t i = 0; i < rings->shares_nr; i++) {
        struct rings_share *share = &rings->shares[i];
        share->job = (struct control_job){.run = run_release, .done = on_release_done};
        list_init(&share->job.link);
        control_post(&share->engine->control, &share->job);
    }
}

enum mlacat_status rings_get(struct rings *rings, uint32_t *index, struct error *err)
{
    for (uint32_t i = 0; i < rings->pages->rings; i++) {
        uint64_t bit = (uint64_t)1 << (i % 64);
        if (!(rings->used[i / 64] & bit)) {
            rings->used[i / 64] |= bit;
            *index = i;
            return MLACAT_OK;
        }
    }
    return error_set(err, MLACAT_RESOURCE_EXHAUSTED,
                     "all %u rings of this client have a stream, or one that is still closing: close streams, or wait "
                     "a moment",
                     rings->pages->rings);
}

void rings_put(struct rings *rings, uint32_t index, uint64_t sequence)
{
    rings->sequence[index] = sequence;
    rings->used[index / 64] &= ~((uint64_t)1 << (index % 64));
}

struct rings_share *rings_share_with(struct rings *rings, struct engine *engine)
{
    for (uint32_t i = 0; i < rings->shares_nr; i++) {
        if (rings->shares[i].engine == engine) {
            return &rings->shares[i];
        }
    }
    assert(rings->shares_nr < WIRE_DEVICES_MAX);
    struct rings_share *share = &rings->shares[rings->shares_nr++];
    *share = (struct rings_share){.rings = rings, .engine = engine};
    engine_count_rings(engine, 1);
    return share;
}

static enum device_answer register_once(struct rings_share *share, void *address, size_t bytes,
                                        struct device_pages **pages, struct error *err)
{
    if (*pages) {
        return DEVICE_OK;
    }
    return share->engine->ops->pages_register(share->engine->device, address, bytes, pages, err);
}

enum device_answer rings_share_register(struct rings_share *share, struct error *err)
{
    const struct ring_pages *pages = share->rings->pages;
    enum device_answer answer =
        register_once(share, pages->client, pages->client_words_bytes, &share->client_pages, err);
    if (answer != DEVICE_OK) {
        return answer;
    }
    return register_once(share, pages->daemon, pages->daemon_words_bytes, &share->daemon_pages, err);
}
