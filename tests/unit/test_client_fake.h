/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A daemon of a test: speaks the protocol from a thread with the generated code, runs nothing, and does on request what
 * a real one does rarely: holds calls, dies, drains, refuses.
 *
 * Owns:     a listening socket in a folder of its own, up to FAKE_CONNECTIONS connections, one thread.
 * Thread:   any test thread.
 * Lifetime: fake_start -> fake_stop.
 * Errors:   what a client may not send aborts the test program with a message.
 */
#ifndef TEST_CLIENT_FAKE_H
#define TEST_CLIENT_FAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "mlacat/mlacat.h"
#include "test_client_say.h"

#define FAKE_CONNECTIONS 8
#define FAKE_CALLS 8192
/* Of its clients, to connect and to connect again: what comes, if a busy machine lets it, comes before this is over. */
#define FAKE_PATIENCE_MS 60000

struct fake;

struct fake *fake_start(void);
void fake_stop(struct fake *fake);
const char *fake_path(const struct fake *fake);

/* What it says to RegisterBuffer when it is out of its mind. */
enum fake_register {
    FAKE_REGISTER_RIGHT,
    FAKE_REGISTER_OTHER_NUMBER, /* a good reply, but to a request that nobody made */
    FAKE_REGISTER_GARBAGE,      /* bytes that are no message */
    FAKE_REGISTER_END           /* `code`, as the reason for which it ends the connection */
};

/* How it answers from now on. */
struct fake_mode {
    bool hold;                 /* keep calls until fake_release */
    bool refuse_hello;         /* say `code` and close */
    bool refuse_open;          /* answer OpenStream with `code` */
    bool refuse_register;      /* answer RegisterBuffer with `code` */
    bool refuse_event;         /* answer RegisterEvent with `code` */
    bool old;                  /* has no features: a message of one aborts */
    bool deaf;                 /* read nothing */
    bool ignore;               /* read requests other than Hello, answer none */
    void (*registering)(void); /* called before each answer to RegisterBuffer; NULL: nothing */
    enum fake_register register_reply;
    enum mlacat_status code;  /* of the refusals and of every call (0: OK) */
    enum mlacat_scope scope;  /* with `code` of calls */
    const char *text;         /* with `code` */
    uint32_t stream_calls;    /* limit told to new streams; 0: 16 */
    bool rings;               /* it has rings (test_client_rings.h) */
    bool refuse_rings;        /* answer OpenRings with `code` */
    struct say_memory memory; /* of its second device, in Stats */
    bool cuda;                /* its first device, "GPU-1" of kind cuda, is there */
};
void fake_set(struct fake *fake, struct fake_mode mode);
/* Waits until the fake's thread goes by the last fake_set. */
void fake_sync(struct fake *fake);

/* What it has seen so far. */
struct fake_seen {
    unsigned hellos;
    unsigned registers;
    unsigned unregisters;
    unsigned opens;
    unsigned closes;
    unsigned submits;
    unsigned calls;
    unsigned cancels;
    unsigned stats;
    unsigned events;
    unsigned events_gone;
    unsigned waits;       /* calls that wait for an event */
    uint32_t last_waited; /* the id of the last one's */
    uint32_t last_event;  /* the id of the last that was registered */
    uint8_t last_handle[64];
    char last_device[64];
    unsigned ring_opens;
    unsigned pages_opens;
};
struct fake_seen fake_seen(struct fake *fake);
/* Waits until so many calls, unregistered buffers or ignored requests have been seen. */
void fake_await_calls(struct fake *fake, unsigned calls);
void fake_await_unregisters(struct fake *fake, unsigned unregisters);
void fake_await_ignored(struct fake *fake, unsigned requests);

/* Completes the newest (or oldest) `nr` held calls, in this order, one packet each, with `mode.code`. */
void fake_release(struct fake *fake, unsigned nr, bool newest_first);
/* Forgets held calls and closes all connections, after saying `last_words` (NULL: nothing). It goes on listening. */
void fake_die(struct fake *fake, const char *last_words);
/* Stops and starts listening at the same path. */
void fake_hide(struct fake *fake);
void fake_show(struct fake *fake);
/* Sends these bytes to all connections, with a descriptor that nobody asked for if `fd` is not -1. */
void fake_send_raw(struct fake *fake, const void *bytes, size_t size, int fd);

/* The rings of the last connection that asked for them; it has them until fake_die or the next that asks. */
struct rings *fake_rings(struct fake *fake);
/* Says that the process of the daemon has ended: its pidfd is readable from now on. */
void fake_exit(struct fake *fake);

/* A client of it, which waits FAKE_PATIENCE_MS for it. */
struct mlacat_client *fake_client(struct fake *fake, enum mlacat_dispatch dispatch);
/* A call of op concat_mla_k over one buffer: [1,2,3] and [1,1,3] -> [1,2,6]. */
struct mlacat_call fake_call(struct mlacat_buffer *buffer);

#endif
