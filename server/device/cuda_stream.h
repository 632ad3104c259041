/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An ordered lane on the GPU: calls become launches, and after each launch the GPU writes its number into the stream's
 * fence word, which is all that the worker looks at. A call that is longer than a millisecond is several launches; not
 * much more than that is given to the GPU ahead, so that a call that waits behind long ones still can be withdrawn.
 * With words (device.h) the last launch of a call moves those instead of the stream's own fence.
 * Private to the device layer and its tests.
 *
 * Owns:     the driver's stream, its fence word, and a pin on the memory of each call in flight.
 * Thread:   open, close: the device's control thread. submit, poll: the stream's worker.
 * Lifetime: open -> (submit, poll)* -> close, with no call in flight unless the device is lost.
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
int cuda_stream_poll(struct device_stream *stream, struct device_completion *done, int max, struct error *err);

#endif
