/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mlacat streams of a client: for each CUDA stream one of its own, opened when a call is first ordered on it, and a
 * few for calls of the host device, which threads take turns with.
 *
 * Owns:     the streams.
 * Thread:   with the GIL, which is let go of while the library opens, closes or looks; a lane in use is pinned then.
 * Lifetime: zeroed -> lanes_close or lanes_abandon.
 * Errors:   NULL or -1 with a Python exception set.
 */
#ifndef MLACAT_PYTHON_LANES_H
#define MLACAT_PYTHON_LANES_H

#include "python.h"

#include <mlacat/mlacat.h>
#include <stdbool.h>

#include "raise.h"

#define LANES_MOST 32
#define LANES_HOST 4

struct lane {
    void *cuda_stream;
    unsigned long thread; /* of the per-thread default stream, which is another one in each; else 0 */
    int device_id;        /* -1: host */
    struct mlacat_stream *stream;
    uint64_t used;
    uint64_t checked; /* by lanes_check */
    unsigned pins;
    bool gone; /* not in the table; closed with the last pin */
};

struct lanes {
    struct lane *at[LANES_MOST + LANES_HOST];
    unsigned nr;
    unsigned host_nr;
    uint64_t clock;
};

/* For ordered calls on that CUDA stream, with one pin; NULL: there is none, without an exception. */
struct lane *lanes_find(struct lanes *lanes, int device_id, void *cuda_stream);
/* Where there is none; `device` as mlacat_stream_open. With one pin. */
struct lane *lanes_open(struct lanes *lanes, struct mlacat_client *client, int device_id, void *cuda_stream,
                        const char *device);
/* For a call of the host device that is waited for. With one pin. */
struct lane *lanes_host(struct lanes *lanes, struct mlacat_client *client, const char *device);
/* May wait for the lane's calls and close it, without the GIL. */
void lane_unpin(struct lane *lane);
/* With a pin of the caller. */
void lanes_remove(struct lanes *lanes, struct lane *lane);

/* The first failure of ordered calls that nobody was told of: that lane is removed. */
int lanes_check(struct lanes *lanes);
/* Waits for all calls of lanes that nobody uses now, and closes these. Returns how many are left. */
unsigned lanes_close(struct lanes *lanes);
void lanes_abandon(struct lanes *lanes);

#endif
