/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The objects behind the handles of mlacat.h, and who may touch them.
 *
 * Owns:     the memory of clients, buffers, streams and call slots.
 * Thread:   client->lock guards all that is not marked "fixed". It is never held while something blocks or a callback
 *           runs. Beside it: only the thread that set `reading` reads the socket without the lock, and only the thread
 *           that set `connecting` changes what the daemon calls our buffers and streams.
 * Lifetime: mlacat_connect -> mlacat_disconnect; buffers and streams live on their client's lists until released.
 * Errors:   see each file; public functions raise theirs (error.h).
 */
#ifndef MLACAT_CLIENT_CLIENT_H
#define MLACAT_CLIENT_CLIENT_H

#include <pthread.h>
#include <stdbool.h>
#include <sys/queue.h>
#include <sys/un.h>

#include "error.h"
#include "wire.h"

#define CLIENT_BATCH_PACKETS 8 /* read by one system call while several calls are in flight */
#define CLIENT_NAME_BYTES 64
#define CLIENT_UUID_BYTES 64
#define CLIENT_CUDA_UNKNOWN (-2)
#define CLIENT_DEVICES_MAX 64
#define CLIENT_PACKET_FDS_MAX 2 /* descriptors of one packet from the daemon */

/* A thread that waits for something that arrives on the connection; lives on that thread's stack. */
struct waiter {
    TAILQ_ENTRY(waiter) link; /* on client->waiters while parked, or on client->watchers */
    pthread_cond_t cond;
    bool parked;
    int watched;         /* socket that it polls, on client->watchers */
    bool each_round;     /* wake it after every batch that was read, not only for what it waits for */
    bool wants_space;    /* as the reader, stop also when the socket takes packets again */
    bool runs_callbacks; /* after each step: no need to tell others that callbacks are due */
};

enum slot_state {
    SLOT_FREE,
    SLOT_FLYING, /* sent; the daemon owes a completion */
    SLOT_ENDED   /* the result is here: for mlacat_wait, or for the callback */
};

/* One call. Its id names the slot, the stream and how often the slot was used (slot.h). */
struct slot {
    enum slot_state state;
    uint32_t generation; /* never 0; another one each time the slot is free */
    struct mlacat_stream *stream;
    STAILQ_ENTRY(slot) link; /* on stream->unused, or the list of callbacks that are due */
    struct waiter *waiter;   /* of the thread in mlacat_wait */
    bool detached;           /* a stream-ordered call: nobody waits for it */
    uint64_t sequence;       /* of a ring's entry; the fence words hold it */
    uint32_t failed_before;  /* a value of the ring's `failed` from before the submit */
    mlacat_done_cb done;
    void *user;
    enum mlacat_status status;
    enum mlacat_scope scope;
    char *message; /* of a failed call; on the heap */
    uint64_t queue_ns;
    uint64_t device_ns;
};
STAILQ_HEAD(slot_queue, slot);

struct mlacat_stream {
    struct mlacat_client *client; /* fixed */
    uint32_t index;               /* in client->streams; fixed */
    char device[CLIENT_UUID_BYTES];
    struct wire_ref ref;
    bool on_host;        /* the device is of kind host; fixed */
    int cuda_device;     /* the device in this process, as cuda_current_find says, or CLIENT_CUDA_UNKNOWN; atomic */
    struct ring *ring;   /* NULL: calls go as messages; fixed. With a ring its lock guards what follows (ring.h) */
    struct error broken; /* not OK: why it could not be opened again after a restart; with the client's lock, or, while
                            one is connecting, that thread's alone */
    bool closing;
    struct error failure; /* not OK: of the first stream-ordered call that failed */
    struct slot *slots;   /* fixed */
    uint32_t slots_nr;    /* fixed */
    struct slot_queue unused;
    uint32_t limit;  /* calls that the daemon takes; at most slots_nr */
    uint32_t taken;  /* slots not free */
    uint32_t flying; /* of these, in flight */
    uint32_t due;    /* callbacks that are queued or run */
};

struct mlacat_event {
    struct mlacat_client *client; /* fixed, like device and handle */
    TAILQ_ENTRY(mlacat_event) link;
    char device[CLIENT_UUID_BYTES];
    uint8_t handle[64]; /* kept to register the event again */
    struct wire_ref ref;
    struct error broken; /* not OK: why it cannot be used, as the user is told */
};

struct cuda_export;

struct mlacat_buffer {
    struct mlacat_client *client; /* fixed, like data, bytes, fds and device_memory */
    TAILQ_ENTRY(mlacat_buffer) link;
    char device[CLIENT_UUID_BYTES];
    struct wire_ref ref; /* also read with a ring's lock alone, and `broken` too: they change while rings are down */
    struct error broken; /* not OK: why it could not be registered again, as the user is told */
    bool at_daemon;      /* the daemon knows it, by `ref` */
    _Atomic bool freed;  /* its memory is another's now: it cannot be used, nor registered again */
    uint64_t serial;     /* of this buffer alone; grows along the client's list */
    void *data;          /* NULL: not mapped here */
    size_t bytes;
    struct wire_fds fds;               /* kept to register the memory again */
    struct cuda_export *device_memory; /* NULL: host memory, whose descriptor is the only one */
    uint64_t ready_words;              /* the library's own (ready_word.h): which block; 0: the user's buffer */
};

/* A request that waits for its reply; lives on the stack of its thread. */
struct request {
    TAILQ_ENTRY(request) link;
    uint64_t id;
    bool ended;
    struct Mlacat__V1__Envelope *reply; /* NULL: the connection ended first */
    struct wire_fds *passed;            /* where descriptors of the reply go; NULL: they are closed */
    struct waiter waiter;
};

/* What the daemon said in its Welcome. */
struct server {
    struct mlacat_server_info info; /* `reconnects` is not used here */
    uint64_t features;              /* Mlacat__V1__Feature */
    int pidfd;                      /* readable when the daemon has exited; -1: it sent none */
    struct mlacat_device_info devices[CLIENT_DEVICES_MAX];
};

struct mlacat_client {
    pthread_mutex_t lock;

    /* fixed */
    unsigned process; /* process_generation of the process that connected */
    char socket[sizeof(((struct sockaddr_un *)0)->sun_path)];
    char name[CLIENT_NAME_BYTES];
    int64_t reconnect_timeout_ns;
    int64_t spin_ns; /* of waits on rings */
    enum mlacat_dispatch dispatch;
    int poll_fd;  /* epoll over the socket and event_fd; -1 unless MLACAT_DISPATCH_CALLER */
    int event_fd; /* readable while callbacks are due that the thread that read them does not run */

    /* the connection */
    int fd;          /* -1: there is none */
    uint64_t epoch;  /* counts connections that ended: what was sent in another epoch is lost */
    bool connecting; /* a thread makes a new one */
    bool draining;   /* the daemon refuses calls and is about to go */
    bool stopping;   /* mlacat_disconnect has begun */
    uint32_t reconnects;
    struct error last_words; /* why the last connection ended, or the daemon said it will */
    struct server server;
    pthread_cond_t changed; /* `connecting` or `registering_words` is over, a stream's callbacks have run, or a round
                               of the watch */

    /* reading: one waiting thread at a time is the reader, the others are parked */
    bool reading;
    uint64_t rounds;               /* how often a reader has come back */
    TAILQ_HEAD(, waiter) waiters;  /* parked */
    TAILQ_HEAD(, waiter) watchers; /* wait for space in the socket beside the reader; it stays open under them */
    uint8_t *incoming;             /* the reader's: CLIENT_BATCH_PACKETS packets */
    uint8_t *outgoing;             /* one packet; used with the lock held */

    /* what is open */
    uint64_t last_request_id;
    TAILQ_HEAD(, request) requests;
    TAILQ_HEAD(, mlacat_buffer) buffers;
    TAILQ_HEAD(, mlacat_event) events;
    uint64_t last_serial;           /* of a buffer */
    struct mlacat_stream **streams; /* by index; NULL: unused */
    uint32_t streams_nr;
    uint32_t flying; /* calls in flight on all streams */

    /* rings */
    struct ring_pages *pages;          /* of this connection; NULL: none yet */
    bool opening_pages;                /* a thread asks for them */
    bool registering_words;            /* a thread registers memory of ready_word.h */
    SLIST_HEAD(, order_watch) watches; /* of this connection and of earlier ones (stream_order.h) */

    /* callbacks */
    pthread_mutex_t callback_lock; /* held while one runs; taken with no other lock held */
    struct slot_queue due;         /* ended calls whose callback must run */
    uint32_t flying_callbacks;     /* calls in flight that have one */
    bool event_set;                /* event_fd is readable */
    bool thread_started;
    bool thread_idle; /* the thread waits for a call with a callback */
    pthread_t thread;
    struct waiter thread_waiter;

    /* the watch over GPU memory (memory_watch.h) */
    bool watch_started;
    bool watch_idle;      /* its thread sleeps until a buffer comes */
    uint64_t watch_begun; /* rounds of looking at all buffers */
    uint64_t watch_ended;
    uint64_t watch_wanted; /* the last round that mlacat_reclaim waits for */
    pthread_t watch;
    pthread_cond_t watch_due;
};

/* MLACAT_OK, or raises why no function may use this client: NULL, or a forked child. */
enum mlacat_status client_check(const struct mlacat_client *client);
/* True in a child of the process that connected. */
bool client_is_forked(const struct mlacat_client *client);
/* Name of the device that `wanted` means (NULL: the first available one). Raises NOT_FOUND, UNAVAILABLE. With the lock.
 */
enum mlacat_status client_pick_device(const struct mlacat_client *client, const char *wanted,
                                      const struct mlacat_device_info **device);

#endif
