/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device that misbehaves when told to: it passes everything on to another row of the device table, but fails, refuses
 * or holds back the n-th import (of memory or an event), stream_open, submit, poll, completion or event_query.
 *
 * Owns:     what is to go wrong, for the whole process; nothing of the row underneath.
 * Thread:   the ops as in device.h; the control functions from any thread, at any time.
 * Lifetime: device_fault_over first, before the device is opened.
 * Errors:   an injected one is INTERNAL (failed), RESOURCE_EXHAUSTED (refused) or DATA_LOSS of scope SESSION
 * (completion), and its message says that it is injected.
 */
#ifndef MLACAT_TESTS_DEVICE_FAULT_H
#define MLACAT_TESTS_DEVICE_FAULT_H

#include <stdint.h>

#include "device.h"

enum fault_slot {
    FAULT_IMPORT,
    FAULT_EVENT_IMPORT,
    FAULT_EVENT_QUERY,
    FAULT_STREAM_OPEN,
    FAULT_SUBMIT,
    FAULT_POLL,
    FAULT_COMPLETION,
    FAULT_SLOTS
};

enum fault_kind {
    FAULT_FAIL,   /* imports, stream_open: INTERNAL. submit, event_query: DEVICE_ERROR. completion: DATA_LOSS after the
                     call has run. poll: -1, and the device is lost: from then on each poll is -1 and each submit
                     DEVICE_ERROR */
    FAULT_REFUSE, /* imports, stream_open: RESOURCE_EXHAUSTED. submit, event_query: DEVICE_AGAIN. poll: 0, and no work
                     is done */
    FAULT_HOLD    /* imports, stream_open: does not return until device_fault_clear. Others as FAULT_REFUSE */
};

#define FAULT_FOR_EVER UINT32_MAX

extern const struct device_ops device_fault_ops;

/* Sets the row underneath and clears all faults and counts. No device may be open. */
void device_fault_over(const struct device_ops *inner);

/* The nth call of the slot from now on (1 = the next), and the `times` - 1 after it, go wrong. One setting for a slot.
 */
void device_fault_set(enum fault_slot slot, enum fault_kind kind, uint32_t nth, uint32_t times);

/* Nothing goes wrong any more; who is held goes on; a lost device is found again. */
void device_fault_clear(void);

/* Calls of the slot (completions: given out) so far, and how many of them went wrong. */
uint64_t device_fault_calls(enum fault_slot slot);
uint64_t device_fault_hits(enum fault_slot slot);

#endif
