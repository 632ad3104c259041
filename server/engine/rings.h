/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All that one session has for calls through shared memory: the pages with their rings, the table in which workers find
 * its buffers, and the pages' registration with each device that has a stream with a ring.
 *
 * Owns:     all of that.
 * Thread:   the loop thread; rings_share_register: the device's control thread.
 * Lifetime: rings_new -> rings_free, with no stream left that has a ring and no buffer left that was published.
 *           rings_free returns at once; the rest goes when the devices have let go of the pages.
 * Errors:   rings_new: as ring_pages_new. rings_get: RESOURCE_EXHAUSTED. rings_share_register: what the device says.
 */
#ifndef MLACAT_ENGINE_RINGS_H
#define MLACAT_ENGINE_RINGS_H

#include <stdint.h>

#include "buffer_table.h"
#include "control.h"
#include "device.h"
#include "ring.h"
#include "status.h"
#include "wire.h"

#define RINGS_MAX 1024

struct engine;
struct rings;

/* The pages on one device. */
struct rings_share {
    struct control_job job;
    struct rings *rings;
    struct engine *engine;
    bool asked; /* the loop's: a stream of the session has gone to the control thread to have the pages registered */
    struct device_pages *client_pages; /* control thread; NULL: not registered yet */
    struct device_pages *daemon_pages; /* control thread; NULL: not registered yet */
};

struct rings {
    struct ring_pages *pages;
    struct buffer_table table;
    uint64_t used[RINGS_MAX / 64]; /* bit i: ring i has a stream */
    uint64_t sequence[RINGS_MAX];  /* of the last entry that the ring's users so far had; constant while it is used */
    struct rings_share shares[WIRE_DEVICES_MAX];
    uint32_t shares_nr;
    uint32_t shares_gone; /* after rings_free */
};

/* At most RINGS_MAX rings, each for so many calls. */
enum mlacat_status rings_new(uint32_t rings_nr, uint32_t calls, struct rings **rings, struct error *err);
void rings_free(struct rings *rings);

/* The number of a ring that has no stream. */
enum mlacat_status rings_get(struct rings *rings, uint32_t *index, struct error *err);
/* `sequence`: that its user has come to. */
void rings_put(struct rings *rings, uint32_t index, uint64_t sequence);

struct rings_share *rings_share_with(struct rings *rings, struct engine *engine);
/* Registers the pages, or what is left of them: once. As pages_register of device.h. */
enum device_answer rings_share_register(struct rings_share *share, struct error *err);

#endif
