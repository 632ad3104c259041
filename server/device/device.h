/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device interface: what an accelerator (or the CPU) must do for the service. tests/contract runs one suite over
 * every row.
 *
 * Owns:     a device owns its imported memory and events and its streams; the caller owns the pointers that it got
 *           until it gives them back.
 * Thread:   `open`, `close`, `mem_import`, `mem_release`, `event_import`, `event_release`, `pages_register`,
 *           `pages_release`, `tend`, `stream_open`, `stream_close`: the device's control thread only (the thread that
 *           opens it before that one runs), and they may block. `submit`, `arm`, `poll`: the one worker thread that the
 *           stream belongs to; `event_query`: any worker thread; never blocking.
 * Lifetime: open -> (import/release, stream_open/close, submit/arm/poll)* -> close. close needs all streams closed and
 *           all memory and events released.
 * Errors:   as said with each slot. NODEV and AGAIN never leave the server.
 */
#ifndef MLACAT_DEVICE_DEVICE_H
#define MLACAT_DEVICE_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "memory.h"
#include "op.h"
#include "status.h"

struct device;
struct device_memory;
struct device_event;
struct device_pages;
struct device_stream;

#define DEVICE_UUID_BYTES 64
#define DEVICE_NAME_BYTES 128
#define DEVICE_TEND_LATER UINT64_MAX

enum device_answer {
    DEVICE_OK,
    DEVICE_NODEV, /* open: this machine has no such device; go on without it */
    DEVICE_AGAIN, /* submit: full; nothing was taken, try again after a poll. Else as the slot says */
    DEVICE_ERROR  /* the error says what */
};

struct device_info {
    char uuid[DEVICE_UUID_BYTES]; /* "host", "GPU-..." */
    char name[DEVICE_NAME_BYTES];
    const char *kind; /* "host", "cuda" */
};

/* Calls that one submit may carry. */
#define DEVICE_BATCH 32

/* One proven call for a device stream. Copied by submit. */
struct device_call {
    struct op_plan plan;
    struct device_memory *memory[OP_OPERANDS]; /* pinned by the caller until the completion */
    void *cookie;                              /* given back in the completion */
    /* The rest is for streams with words. */
    uint64_t sequence; /* larger than that of the call before: goes into the fence word when the output is written */
    bool tell_done;    /* it goes into the `done` word too, at about that time; also when the call fails */
    bool signal_only;  /* no call (plan and memory are not looked at): just the words, in order */
    /* `arm` only: where the device finds the value of `ready` too, pinned like `memory`; NULL: in the word only. */
    struct device_memory *ready_memory;
    uint64_t ready_offset;
};

/* Where a device stream tells how far it is. A call that was taken and fails leaves the fence where it is, and no later
 * one moves it before the poll that said so has returned. */
struct device_words {
    uint64_t *fence; /* only this process and the device write it */
    struct device_pages *fence_pages;
    uint64_t *done;                    /* a client's: written, never read */
    const uint64_t *ready;             /* a client's, for `arm`: any number at all */
    struct device_pages *client_pages; /* that both are in */
};

struct device_completion {
    void *cookie;
    bool lapsed; /* of a call that was armed: its word did not come, nothing of it has happened; `error` is not set.
                  * Or it could be launched in part only: its output may be written, no word is, and nothing of it runs
                  * any more */
    /* code OK (the rest is then not set), or why the call failed; scope SESSION: the memory itself was bad */
    struct error error;
};

struct device_ops {
    const char *kind;
    /* The device has no engine of its own: calls move on only while somebody polls. */
    bool works_in_poll;
    /* An import holds up the calls of others for a moment: a client may have them at a bounded rate only. */
    bool import_holds_up;

    /* DEVICE_OK: *device is made and *info filled. DEVICE_NODEV: there is none, `err` says why. DEVICE_ERROR: stop the
     * start. */
    enum device_answer (*open)(const char *uuid, struct device **device, struct device_info *info, struct error *err);
    void (*close)(struct device *device);

    /* Takes the fds of `request` in every outcome. OK: *memory is the caller's until mem_release. Errors:
     * INVALID_ARGUMENT (not this device's kind of memory, size wrong), FAILED_PRECONDITION (seals), RESOURCE_EXHAUSTED,
     * INTERNAL. */
    enum mlacat_status (*mem_import)(struct device *device, struct memory_request *request,
                                     struct device_memory **memory, struct memory_info *info, struct error *err);
    /* No call in flight uses the memory. */
    void (*mem_release)(struct device *device, struct device_memory *memory);
    /* A device may keep memory open for a moment after its release, until `tend` closes it. *released: how often it has
     * begun to; *closed: all of the first so many are closed by now, or in use again. Any thread. */
    void (*mem_closed)(const struct device *device, uint64_t *released, uint64_t *closed);

    /* An event of another process, by its handle. OK: *event is the caller's until event_release. Errors:
     * UNIMPLEMENTED (the device has no such thing), INVALID_ARGUMENT (no such event), RESOURCE_EXHAUSTED, INTERNAL. */
    enum mlacat_status (*event_import)(struct device *device, const uint8_t handle[MEMORY_HANDLE_BYTES],
                                       struct device_event **event, struct error *err);
    /* Nobody asks for the event any more. Does not wait for it. */
    void (*event_release)(struct device *device, struct device_event *event);
    /* DEVICE_OK: its most recent record has completed, or there was none. DEVICE_AGAIN: not yet; whether it ever will
     * is up to its owner, so nothing of it may be put on the device. DEVICE_ERROR: nobody will know; scope DEVICE: the
     * device is lost with it. */
    enum device_answer (*event_query)(struct device_event *event, struct error *err);

    /* Does one piece of what a release left for later, if it is time. Called after each job and before the control
     * thread sleeps, and again after the nanoseconds that it returns; DEVICE_TEND_LATER: not before the next job. Looks
     * about once a second whether the device is still there: when not, `err` is set, else it is left alone. */
    uint64_t (*tend)(struct device *device, struct error *err);

    /* Makes `bytes` at `address`, both multiples of the page size and of a shared mapping, writable by the device. They
     * stay mapped until pages_release, which needs all streams closed that write into them. DEVICE_AGAIN: too many that
     * were released have not gone yet, try again in a few milliseconds; `err` is set too. DEVICE_ERROR:
     * RESOURCE_EXHAUSTED, INTERNAL. */
    enum device_answer (*pages_register)(struct device *device, void *address, size_t bytes,
                                         struct device_pages **pages, struct error *err);
    void (*pages_release)(struct device *device, struct device_pages *pages);

    /* `words` NULL: nobody but `poll` needs to know how far it is. Copied. */
    enum mlacat_status (*stream_open)(struct device *device, const struct device_words *words,
                                      struct device_stream **stream, struct error *err);
    /* No call of the stream is in flight. */
    void (*stream_close)(struct device_stream *stream);

    /* Takes the first *nr of `calls` (1 to DEVICE_BATCH are offered) and says in *nr how many: those complete exactly
     * once, through poll; the others never will. Calls of one stream run in order, or so that nobody can tell.
     * DEVICE_OK: at least one was taken. DEVICE_AGAIN, DEVICE_ERROR: none; the error is about the first. */
    enum device_answer (*submit)(struct device_stream *stream, const struct device_call *calls, uint32_t *nr,
                                 struct error *err);
    /* NULL: never. Takes one call before its turn, for a stream with words that has nothing in flight: the device looks
     * at the word `ready` itself, or in the call's ready_memory, and runs the call when that has reached `value`; after
     * `wait_ns` (at most a millisecond) the call lapses. Nothing may be submitted behind it before it has completed.
     * DEVICE_OK: taken. DEVICE_AGAIN: it is not taken, because that would be no quicker: submit it when its word has
     * come. */
    enum device_answer (*arm)(struct device_stream *stream, const struct device_call *call, uint64_t value,
                              uint64_t wait_ns, struct error *err);
    /* Gives at most `max` completions in order of submission and returns their number; does a bounded piece of work
     * (about 1 ms at most) where the device has no engine of its own. Does not block. -1: the device is lost, `err`
     * says why, nothing more will complete. */
    int (*poll)(struct device_stream *stream, struct device_completion *done, int max, struct error *err);
};

/* The rows; which of them a daemon serves is its configuration. */
extern const struct device_ops device_host_ops;
extern const struct device_ops device_cuda_ops;

/* Fills in what the GPUs are called that this process sees, at most `max` of them, and returns their number. 0: none,
 * and `err` says why. */
uint32_t device_cuda_list(char (*uuids)[DEVICE_UUID_BYTES], uint32_t max, struct error *err);

#endif
