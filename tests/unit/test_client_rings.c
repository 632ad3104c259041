/* SPDX-License-Identifier: Apache-2.0 */
#include "test_client_rings.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mlacat_ring.h"

#define MASK (RINGS_ENTRIES - 1)
#define IDLE_ROUNDS 100

struct taken {
    struct mlacat_ring_submission entry;
    uint64_t sequence;
};

struct one {
    uint32_t stream; /* that has it; 0: none */
    int doorbell;
    struct mlacat_ring_client *client;
    struct mlacat_ring_daemon *daemon;
    uint32_t head;
    uint32_t tail;
    uint64_t sequence;
    struct taken taken[RINGS_ENTRIES]; /* not ended, in order */
    unsigned taken_nr;
    unsigned released;
};

struct rings {
    pthread_mutex_t lock;
    pthread_t thread;
    struct say_rings told;
    unsigned char *client;
    unsigned char *daemon;
    int bell;
    bool stop;
    bool asleep;
    unsigned rung;  /* by tests */
    unsigned heard; /* of these */
    struct rings_mode mode;
    struct rings_seen seen;
    struct one ring[RINGS_NR];
};

/* ---------------------------------------------------------------------------------------------------- ending */

static void show(struct rings *rings, struct one *one)
{
    if (rings->mode.late || one->daemon->complete_tail == one->tail) {
        return;
    }
    mlacat_ring_complete(one->daemon, one->tail);
    if (mlacat_ring_client_waits(one->client)) {
        syscall(SYS_futex, &one->daemon->complete_tail, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    }
}

static void complete(struct rings *rings, struct one *one, uint64_t call_id, enum mlacat_status code,
                     enum mlacat_scope scope, const char *text)
{
    size_t index = (size_t)(one - rings->ring) * RINGS_ENTRIES + (one->tail++ & MASK);
    struct mlacat_ring_completion *completions = (void *)(rings->daemon + rings->told.completions_offset);
    char *message = (char *)rings->daemon + rings->told.messages_offset + index * MLACAT_ABI_MESSAGE_BYTES;
    if (one->tail - mlacat_ring_completions_read_up_to(one->client) > RINGS_ENTRIES) {
        say_give_up("more entries than the ring has");
    }
    if (code != MLACAT_OK) {
        snprintf(message, MLACAT_ABI_MESSAGE_BYTES, "%s", text);
    }
    completions[index] = (struct mlacat_ring_completion){
        .call_id = call_id, .status = (uint16_t)code, .scope = (uint16_t)scope, .queue_ns = 11, .device_ns = 22};
}

static void end_call(struct rings *rings, struct one *one, unsigned at, enum mlacat_status code,
                     enum mlacat_scope scope, const char *text)
{
    struct taken call = one->taken[at];
    memmove(&one->taken[at], &one->taken[at + 1], (one->taken_nr - at - 1) * sizeof(call));
    one->taken_nr--;
    if (code != MLACAT_OK) {
        mlacat_ring_count_failed(one->daemon);
    }
    bool tells_done = (call.entry.flags & MLACAT_RING_SUBMIT_DONE) != 0;
    if (code == MLACAT_OK || tells_done) {
        __atomic_store_n(&one->daemon->fence, call.sequence, __ATOMIC_RELEASE);
    }
    if (tells_done) {
        __atomic_store_n(&one->client->done, call.sequence, __ATOMIC_RELEASE);
    }
    complete(rings, one, call.entry.call_id, code, scope, text);
}

static void cancel(struct rings *rings, struct one *one, const struct mlacat_ring_submission *entry)
{
    rings->seen.cancels++;
    for (unsigned i = 0; i < one->taken_nr; i++) {
        if (one->taken[i].entry.call_id == entry->ready) {
            end_call(rings, one, i, MLACAT_CANCELLED, MLACAT_SCOPE_CALL, "cancelled by the test");
            complete(rings, one, entry->call_id, MLACAT_OK, MLACAT_SCOPE_NONE, "");
            return;
        }
    }
    mlacat_ring_count_failed(one->daemon);
    complete(rings, one, entry->call_id, MLACAT_NOT_FOUND, MLACAT_SCOPE_CALL, "no such call");
}

static bool may_end(const struct rings *rings, const struct one *one)
{
    const struct mlacat_ring_submission *entry = &one->taken[0].entry;
    bool gated =
        (entry->flags & MLACAT_RING_SUBMIT_READY) != 0 && (int64_t)(mlacat_ring_ready(one->client) - entry->ready) < 0;
    return one->taken_nr > 0 && !gated && (!rings->mode.hold || one->released > 0);
}

/* ---------------------------------------------------------------------------------------------------- taking */

static void take(struct rings *rings, struct one *one)
{
    size_t index = (size_t)(one - rings->ring) * RINGS_ENTRIES + (one->head++ & MASK);
    const struct mlacat_ring_submission *entries = (const void *)(rings->client + rings->told.submissions_offset);
    struct taken call = {.sequence = ++one->sequence};
    mlacat_ring_copy(&call.entry, &entries[index]);
    mlacat_ring_take_up_to(one->daemon, one->head);
    if ((call.entry.flags & MLACAT_RING_SUBMIT_CANCEL) != 0) {
        cancel(rings, one, &call.entry);
        return;
    }
    if (one->taken_nr == RINGS_ENTRIES || call.entry.buffer[0].generation != SAY_BUFFER_GENERATION) {
        say_give_up("an entry too many, or without its buffer");
    }
    rings->seen.calls++;
    rings->seen.last = call.entry;
    one->taken[one->taken_nr++] = call;
}

/* True: something happened, or may without a doorbell. */
static bool serve(struct rings *rings, struct one *one)
{
    bool busy = false;
    while (!rings->mode.blind && one->head != mlacat_ring_submitted(one->client)) {
        take(rings, one);
        busy = true;
    }
    while (may_end(rings, one)) {
        one->released -= rings->mode.hold;
        end_call(rings, one, 0, rings->mode.code, rings->mode.scope, rings->mode.text ? rings->mode.text : "refused");
        busy = true;
    }
    show(rings, one);
    return busy || (one->taken_nr > 0 && (one->taken[0].entry.flags & MLACAT_RING_SUBMIT_READY) != 0);
}

static bool serve_all(struct rings *rings)
{
    bool busy = false;
    for (int i = 0; i < RINGS_NR; i++) {
        busy |= rings->ring[i].stream != 0 && serve(rings, &rings->ring[i]);
    }
    return busy;
}

static void tell_sleeping(struct rings *rings, uint32_t sleeping)
{
    for (int i = 0; i < RINGS_NR; i++) {
        mlacat_ring_sleep(rings->ring[i].daemon, sleeping);
    }
}

/* With the lock, which it lets go of. */
static void sleep_until_rung(struct rings *rings)
{
    struct pollfd items[RINGS_NR + 1];
    uint64_t count;
    rings->asleep = true;
    for (int i = 0; i < RINGS_NR; i++) {
        items[i] = (struct pollfd){.fd = rings->ring[i].doorbell, .events = POLLIN};
    }
    items[RINGS_NR] = (struct pollfd){.fd = rings->bell, .events = POLLIN};
    pthread_mutex_unlock(&rings->lock);
    poll(items, RINGS_NR + 1, -1);
    pthread_mutex_lock(&rings->lock);
    rings->asleep = false;
    for (int i = 0; i < RINGS_NR; i++) {
        rings->seen.bells += items[i].revents != 0 && read(items[i].fd, &count, sizeof(count)) > 0;
    }
    if (items[RINGS_NR].revents != 0 && read(rings->bell, &count, sizeof(count)) > 0) {
        rings->heard = rings->rung;
    }
}

static void *run(void *user)
{
    struct rings *rings = user;
    unsigned idle = 0;
    pthread_mutex_lock(&rings->lock);
    while (!rings->stop) {
        idle = serve_all(rings) ? 0 : idle + 1;
        if (idle > IDLE_ROUNDS && !rings->mode.awake) {
            tell_sleeping(rings, 1);
            if (!serve_all(rings)) {
                sleep_until_rung(rings);
            }
            tell_sleeping(rings, 0);
            idle = 0;
        }
        pthread_mutex_unlock(&rings->lock);
        sched_yield();
        pthread_mutex_lock(&rings->lock);
    }
    pthread_mutex_unlock(&rings->lock);
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------- control */

static unsigned char *make_page(const char *name, uint64_t bytes, int *fd)
{
    *fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    void *at = MAP_FAILED;
    if (*fd >= 0 && ftruncate(*fd, (off_t)bytes) == 0 && fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0) {
        at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    }
    if (at == MAP_FAILED) {
        say_give_up(name);
    }
    return at;
}

struct rings *rings_new(void)
{
    struct rings *rings = calloc(1, sizeof(*rings));
    struct say_rings *told = &rings->told;
    uint64_t entries = (uint64_t)RINGS_NR * RINGS_ENTRIES;
    told->rings = RINGS_NR;
    told->entries = RINGS_ENTRIES;
    told->submissions_offset = 4096;
    told->completions_offset = 4096;
    told->messages_offset = told->completions_offset + entries * sizeof(struct mlacat_ring_completion);
    told->client_bytes = told->submissions_offset + entries * sizeof(struct mlacat_ring_submission);
    told->daemon_bytes = told->messages_offset + entries * MLACAT_ABI_MESSAGE_BYTES;
    rings->client = make_page("C", told->client_bytes, &told->fds[0]);
    rings->daemon = make_page("D", told->daemon_bytes, &told->fds[1]);
    rings->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (int i = 0; i < RINGS_NR; i++) {
        rings->ring[i].doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        rings->ring[i].client = rings_client(rings, (uint32_t)i);
        rings->ring[i].daemon = (void *)(rings->daemon + (size_t)i * sizeof(struct mlacat_ring_daemon));
        rings->ring[i].sequence = RINGS_BEGIN;
    }
    pthread_mutex_init(&rings->lock, NULL);
    if (pthread_create(&rings->thread, NULL, run, rings) != 0) {
        say_give_up("pthread_create");
    }
    return rings;
}

static void wake(struct rings *rings)
{
    const uint64_t one = 1;
    rings->rung++;
    if (write(rings->bell, &one, sizeof(one)) < 0) {
        say_give_up("eventfd");
    }
}

void rings_free(struct rings *rings)
{
    if (rings == NULL) {
        return;
    }
    pthread_mutex_lock(&rings->lock);
    rings->stop = true;
    wake(rings);
    pthread_mutex_unlock(&rings->lock);
    pthread_join(rings->thread, NULL);
    for (int i = 0; i < RINGS_NR; i++) {
        close(rings->ring[i].doorbell);
    }
    munmap(rings->client, rings->told.client_bytes);
    munmap(rings->daemon, rings->told.daemon_bytes);
    close(rings->told.fds[0]);
    close(rings->told.fds[1]);
    close(rings->bell);
    free(rings);
}

const struct say_rings *rings_told(const struct rings *rings)
{
    return &rings->told;
}

/* As mlacat_ring.h says. */
static void begin(struct one *one)
{
    one->head = one->tail = (uint32_t)one->sequence;
    one->client->submit_tail = one->client->complete_head = one->head;
    one->client->waiting = 0;
    one->daemon->submit_head = one->daemon->complete_tail = one->head;
    one->daemon->fence = one->sequence;
}

bool rings_take(struct rings *rings, uint32_t stream, struct say_ring *ring)
{
    bool found = false;
    pthread_mutex_lock(&rings->lock);
    for (uint32_t i = 0; i < RINGS_NR && !found; i++) {
        struct one *one = &rings->ring[i];
        if (one->stream == 0) {
            found = true;
            one->stream = stream;
            begin(one);
            *ring = (struct say_ring){.index = i, .sequence = one->sequence, .doorbell = one->doorbell};
        }
    }
    wake(rings);
    pthread_mutex_unlock(&rings->lock);
    return found;
}

void rings_put(struct rings *rings, uint32_t stream)
{
    pthread_mutex_lock(&rings->lock);
    for (int i = 0; i < RINGS_NR; i++) {
        if (rings->ring[i].stream == stream) {
            rings->ring[i].stream = 0;
        }
    }
    pthread_mutex_unlock(&rings->lock);
}

void rings_set(struct rings *rings, struct rings_mode mode)
{
    pthread_mutex_lock(&rings->lock);
    rings->mode = mode;
    wake(rings);
    pthread_mutex_unlock(&rings->lock);
}

void rings_release(struct rings *rings, uint32_t index, unsigned nr)
{
    pthread_mutex_lock(&rings->lock);
    rings->ring[index].released += nr;
    wake(rings);
    pthread_mutex_unlock(&rings->lock);
}

struct rings_seen rings_seen(struct rings *rings)
{
    pthread_mutex_lock(&rings->lock);
    struct rings_seen seen = rings->seen;
    pthread_mutex_unlock(&rings->lock);
    return seen;
}

void rings_await_calls(struct rings *rings, unsigned calls)
{
    while (rings_seen(rings).calls < calls) {
        sched_yield();
    }
}

void rings_await_sleep(struct rings *rings)
{
    for (bool asleep = false; !asleep; sched_yield()) {
        pthread_mutex_lock(&rings->lock);
        asleep = rings->asleep && rings->heard == rings->rung;
        pthread_mutex_unlock(&rings->lock);
    }
}

void rings_await_parked(struct rings *rings, uint32_t index)
{
    while (!mlacat_ring_client_waits(rings_client(rings, index))) {
        sched_yield();
    }
}

void rings_tell_look(struct rings *rings, uint32_t index, uint64_t now_ns)
{
    mlacat_ring_look(rings->ring[index].daemon, now_ns);
}

struct mlacat_ring_client *rings_client(struct rings *rings, uint32_t index)
{
    return (void *)(rings->client + (size_t)index * sizeof(struct mlacat_ring_client));
}

uint64_t rings_done(struct rings *rings, uint32_t index)
{
    return __atomic_load_n(&rings_client(rings, index)->done, __ATOMIC_ACQUIRE);
}

uint64_t rings_fence(struct rings *rings, uint32_t index)
{
    return mlacat_ring_fence(rings->ring[index].daemon);
}

uint32_t rings_failed(struct rings *rings, uint32_t index)
{
    return mlacat_ring_failed(rings->ring[index].daemon);
}
