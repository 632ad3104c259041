/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device made of paper, with words: nothing is copied, and each call ends when the test says so.
 *
 * Owns:     its state, for the whole process.
 * Thread:   the device's functions as in device.h; the state from any.
 * Lifetime: cleared by the test before the device is opened.
 * Errors:   as the test orders; a broken rule of device.h fails the test.
 */
#ifndef MLACAT_TESTS_PAPER_DEVICE_H
#define MLACAT_TESTS_PAPER_DEVICE_H

#include <stdatomic.h>

#include "device.h"

#define PAPER_CALLS 64 /* that a stream takes */
#define PAPER_LOG 1024
#define PAPER_OUTPUTS 256

struct paper {
    _Atomic int permits; /* calls that may end */
    _Atomic int launched;
    _Atomic int largest;      /* batch */
    _Atomic int signals;      /* launched with signal_only */
    _Atomic int refuse_nr;    /* calls that submit refuses from now on */
    _Atomic int fail_nr;      /* calls that end badly from now on */
    _Atomic int lost;         /* poll fails */
    _Atomic int takes_arms;   /* arm takes calls; else it answers AGAIN */
    _Atomic int offered;      /* calls to arm */
    _Atomic int armed;        /* that it took; they do not count as launched */
    _Atomic int lapse_nr;     /* armed calls that lapse from now on, whatever their word says; others never do */
    _Atomic int quick;        /* the word of an armed call comes when nobody but the device looks */
    _Atomic uint64_t wait_ns; /* of the last call that was armed; the same where its word was told to be */
    _Atomic(const void *) ready_memory;
    _Atomic uint64_t ready_offset;
    _Atomic uint64_t import_bytes;    /* of memory from now on; 0: 4096 */
    _Atomic uint64_t import_at;       /* likewise its place in its allocation */
    _Atomic int held;                 /* submit does not return */
    _Atomic(const void *) held_fence; /* the same for the stream with this fence only */
    _Atomic int holding;              /* submit is held now */
    _Atomic int failed_early;         /* `failed` when the last call was launched */
    _Atomic int released;
    _Atomic int pages;
    _Atomic int no_room_nr; /* registrations of pages that find no room from now on */
    _Atomic int logged;
    _Atomic(const void *) log[PAPER_LOG]; /* the fence of each call launched, in order: of one worker */
    /* What the calls write: place sequence % PAPER_OUTPUTS gets the sequence number, before the fence passes it. */
    uint64_t output[PAPER_OUTPUTS];
};

extern struct paper paper;
extern const struct device_ops paper_ops;

#endif
