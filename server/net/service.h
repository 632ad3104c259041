/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all sessions share: the loop, the devices, the limits, the counters.
 *
 * Owns:     the decoder, the packet readers, the buffer that answers are packed in; not the loop and the engines.
 * Thread:   the loop thread.
 * Lifetime: service_init -> service_fini, with all sessions gone.
 * Errors:   service_init: RESOURCE_EXHAUSTED without memory.
 */
#ifndef MLACAT_NET_SERVICE_H
#define MLACAT_NET_SERVICE_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "conn.h"
#include "counters.h"
#include "engine.h"
#include "histogram.h"
#include "list.h"
#include "op.h"
#include "wire.h"

#define SERVICE_ENGINES_MAX WIRE_DEVICES_MAX
#define SERVICE_STATUSES 17

struct session;

struct service_limits {
    uint32_t clients;
    struct wire_limits client; /* of each one */
    uint32_t hello_timeout_ms;
};

/* Calls of one packet that were refused, until their completions are sent. */
struct service_refused {
    uint32_t nr;
    struct wire_completion completions[WIRE_COMPLETIONS_MAX];
    struct error errors[WIRE_COMPLETIONS_MAX];
};

struct service {
    uv_loop_t *loop;
    struct engine *engines;
    uint32_t engines_nr;
    struct service_limits limits;
    uint8_t boot_id[WIRE_BOOT_ID_BYTES];
    struct loop_bell *bell;
    int pidfd;                     /* of this process, for clients to watch; -1: the kernel has none */
    void (*on_drain)(void *owner); /* an operator's client asks for it */
    void (*on_device_lost)(void *owner, const struct error *why); /* may come often */
    void *owner;
    bool had_packets; /* a client sent something: set here, cleared by who asks */
    bool draining;
    bool stuck; /* a worker or a control thread makes no progress: not ready */

    struct conn_reader *reader;
    struct wire_decoder *decoder;
    uint8_t *packet;           /* WIRE_PACKET_BYTES */
    struct list_node sessions; /* struct session.link */
    uint32_t sessions_nr;
    struct list_node unsent; /* struct session.unsent_link: sessions with completions to send */
    struct service_refused refused;

    uint64_t started_ns;
    uint64_t clients_total;
    uint64_t clients_refused;
    uint64_t sessions_broken;
    uint64_t outcomes[SERVICE_STATUSES];
    struct op_counters ops[SERVICE_ENGINES_MAX][OP_NUMBER_MAX + 1];
};

/* `loop`, `engines`, `limits`, `bell`, `boot_id`, `pidfd`, `on_drain`, `on_device_lost`, `owner` are set by the caller
 * before. */
enum mlacat_status service_init(struct service *service, struct error *err);
void service_fini(struct service *service);

/* NULL: no device has that UUID, and `err` (NOT_FOUND) lists those there are; or it is absent, and `err` (UNAVAILABLE)
 * says why. */
struct engine *service_find_engine(struct service *service, const char *uuid, struct error *err);

/* Calls at the workers. */
uint32_t service_calls_at_workers(const struct service *service);

/* Streams that are not gone, of all clients. */
uint32_t service_streams(const struct service *service);

/* The loop is at work and will look at its mailboxes before it sleeps: nobody needs to wake it. */
static inline void service_awake(struct service *service)
{
    atomic_store_explicit(&service->bell->asleep, 0, memory_order_relaxed);
}

/* Hands out what the engines have finished and sends completions; until nothing is left. Returns true if there was
 * something. */
bool service_take(struct service *service);

/* A client has streams with rings, or had. */
bool service_has_rings(const struct service *service);

/* What comes through rings is refused from now on; service_calls says when the last one has ended. */
void service_drain_rings(struct service *service);

/* Calls accepted and not yet answered, of all clients. */
uint32_t service_calls(const struct service *service);

/* Packs the reply to a StatsRequest of a client into service->packet and returns its size. */
size_t service_pack_stats(struct service *service, const struct session *asking, uint64_t request_id);

#endif
