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

struct paper {
    _Atomic int permits; /* calls that may end */
    _Atomic int launched;
    _Atomic int largest;      /* batch */
    _Atomic int signals;      /* launched with signal_only */
    _Atomic int refuse_nr;    /* calls that submit refuses from now on */
    _Atomic int fail_nr;      /* calls that end badly from now on */
    _Atomic int lost;         /* poll fails */
    _Atomic int held;         /* submit does not return */
    _Atomic int failed_early; /* `failed` when the last call was launched */
    _Atomic int released;
    _Atomic int pages;
};

extern struct paper paper;
extern const struct device_ops paper_ops;

#endif
