/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A GPU as any client of the service uses it: the driver by dlopen, so that one mlacatctl runs on machines with and
 * without a GPU.
 *
 * Owns:     the device's primary context (retained) and one stream. Memory is the caller's to free.
 * Thread:   the one that opened it.
 * Lifetime: gpu_open .. gpu_close; a process that forks afterwards must not use CUDA in the child.
 * Errors:   false; `error` says which call failed on what, and what to do where that is known.
 */
#ifndef MLACAT_CTL_GPU_H
#define MLACAT_CTL_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gpu_stream;
struct gpu_module;
struct gpu_function;
struct gpu_event;

typedef unsigned long long gpu_address; /* CUdeviceptr */

/* CUipcMemHandle: names an allocation in another process. */
struct gpu_handle {
    unsigned char bytes[64];
};

struct gpu_api {
#define CUDA_CALL(name, abi, parameters) int(*name) parameters;
#include "gpu.def"
};

#define GPU_ERROR_BYTES 256
/* The driver puts smaller allocations together, and then shares their neighbours too. */
#define GPU_GRAIN_BYTES ((size_t)2 << 20)

enum { GPU_RESULT_NOT_READY = 600 };

struct gpu {
    const struct gpu_api *api;
    int device;
    void *context;
    struct gpu_stream *stream;
    char error[GPU_ERROR_BYTES];
};

/* `uuid`: "GPU-..." as the service names it. */
bool gpu_open(struct gpu *gpu, const char *uuid);
/* A zeroed one is fine. */
void gpu_close(struct gpu *gpu);

/* Says in `error` that `call` on `what` gave `result`, unless that is 0. True if it is. */
bool gpu_check(struct gpu *gpu, int result, const char *call, const char *what);

/* An allocation of its own, that can be shared. 0 is no address. */
bool gpu_alloc(struct gpu *gpu, size_t bytes, gpu_address *address);
void gpu_free(struct gpu *gpu, gpu_address address);
bool gpu_free_bytes(struct gpu *gpu, size_t *bytes);
bool gpu_cache_bytes(struct gpu *gpu, size_t *bytes);

/* Done when they return. */
bool gpu_upload(struct gpu *gpu, gpu_address to, const void *from, size_t bytes);
bool gpu_download(struct gpu *gpu, void *to, gpu_address from, size_t bytes);
bool gpu_fill(struct gpu *gpu, gpu_address to, uint8_t byte, size_t bytes);
/* Enqueued; gpu_wait waits for all that is. */
bool gpu_copy(struct gpu *gpu, gpu_address to, gpu_address from, size_t bytes);
bool gpu_wait(struct gpu *gpu);

/* Names the allocation for another process. */
bool gpu_export(struct gpu *gpu, gpu_address address, struct gpu_handle *handle);
/* Opens memory of another process. */
bool gpu_import(struct gpu *gpu, const struct gpu_handle *handle, gpu_address *address);
bool gpu_import_close(struct gpu *gpu, gpu_address address);

#endif
