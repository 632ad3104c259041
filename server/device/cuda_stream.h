/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client's stream on the GPU: calls become launches, and at the end of each the GPU writes a number into a word of
 * host memory, which is all that the worker looks at. The kernel of a small call that is by itself does that itself.
 *
 * Calls run so that nobody can tell that they do not run one after the other. The stream has a few lanes, each on one
 * CUDA stream at a time: a call whose operands meet nothing in flight goes to the next lane, where it begins while the
 * one before it ends and tells of it; a call that meets some on one lane goes behind them; one that meets some on two
 * lanes is not taken before a poll has seen the end of those on one. Nothing on the GPU ever waits for another lane.
 * Small calls that are submitted together and do not meet are one launch.
 *
 * A call that is longer than a millisecond is several launches; not much more than that is given to the GPU ahead, so
 * that a call that waits behind long ones still can be withdrawn. With words (device.h) the GPU moves them itself for a
 * call that is alone, or behind such ones; for all others the poll does that sees the end of the call.
 * Private to the device layer and its tests.
 *
 * Owns:     its lanes, and a pin on the memory of each call in flight.
 * Thread:   open, close: the device's control thread. submit, arm, poll: the stream's worker.
 * Lifetime: open -> (submit, arm, poll)* -> close, with no call in flight unless the device is lost.
 * Errors:   as the slots of device.h.
 */
#ifndef MLACAT_DEVICE_CUDA_STREAM_H
#define MLACAT_DEVICE_CUDA_STREAM_H

#include "device.h"

/* How long a fence may stand still before the driver is asked whether the device still lives. */
#define CUDA_FENCE_SILENCE_NS UINT64_C(20000000)

enum mlacat_status cuda_stream_open(struct device *device, const struct device_words *words,
                                    struct device_stream **stream, struct error *err);
void cuda_stream_close(struct device_stream *stream);
enum device_answer cuda_stream_submit(struct device_stream *stream, const struct device_call *calls, uint32_t *nr,
                                      struct error *err);
/* Only calls of one launch, and only under MPS: without it nobody else's kernels run while ours waits. One that more
 * than a block copies needs the kernels for that too (cuda_gated.h). If they cannot be launched it is as if it had
 * lapsed. */
enum device_answer cuda_stream_arm(struct device_stream *stream, const struct device_call *call, uint64_t value,
                                   uint64_t wait_ns, struct error *err);
int cuda_stream_poll(struct device_stream *stream, struct device_completion *done, int max, struct error *err);

#endif
