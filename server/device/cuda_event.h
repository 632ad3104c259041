/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events of other processes: asked by the CPU, never waited for by the GPU, because whether they come is up to a
 * client. Private to the device layer and its tests.
 *
 * Owns:     the driver's handle of the opened event.
 * Thread:   the device's control thread; cuda_event_query: the workers.
 * Lifetime: cuda_event_import -> cuda_event_release.
 * Errors:   as event_import and event_query of device.h.
 */
#ifndef MLACAT_DEVICE_CUDA_EVENT_H
#define MLACAT_DEVICE_CUDA_EVENT_H

#include <stdint.h>

#include "device.h"

enum mlacat_status cuda_event_import(struct device *device, const uint8_t handle[MEMORY_HANDLE_BYTES],
                                     struct device_event **event, struct error *err);
/* Does not block, even if the event never came: not one of those that must be paced. */
void cuda_event_release(struct device *device, struct device_event *event);
enum device_answer cuda_event_query(struct device_event *event, struct error *err);

#endif
