/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA driver, loaded at run time: one binary runs on hosts with and without a GPU, and builds without the toolkit.
 * Types and numbers are those of the driver's ABI, declared here under names of our own; a test compares them with
 * cuda.h where there is one.
 *
 * Owns:     the loaded driver, from the first cuda_api_get that succeeds to the end of the process.
 * Thread:   cuda_api_get: one thread at a time; the table is constant after it. The driver's calls: any thread, as
 *           each says; what may block is for the control thread.
 * Lifetime: the process.
 * Errors:   cuda_api_get: UNAVAILABLE (no driver here, or too old: the message says which).
 */
#ifndef MLACAT_DEVICE_CUDA_API_H
#define MLACAT_DEVICE_CUDA_API_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

/* ---------------------------------------------------------------------------------------------- types of the ABI */

struct cuda_context;
struct cuda_event;
struct cuda_stream;
struct cuda_module;
struct cuda_function;

typedef unsigned long long cuda_address;    /* CUdeviceptr */
typedef unsigned long long cuda_allocation; /* CUmemGenericAllocationHandle */

struct cuda_uuid {
    unsigned char bytes[16];
};
_Static_assert(sizeof(struct cuda_uuid) == 16, "CUuuid");

struct cuda_ipc_handle {
    unsigned char bytes[64];
};
_Static_assert(sizeof(struct cuda_ipc_handle) == 64, "CUipcMemHandle, CUipcEventHandle");

struct cuda_location {
    int type;
    int id;
};
_Static_assert(sizeof(struct cuda_location) == 8, "CUmemLocation");

struct cuda_access {
    struct cuda_location location;
    int flags;
};
_Static_assert(sizeof(struct cuda_access) == 12, "CUmemAccessDesc");

struct cuda_allocation_properties {
    int type;
    int handle_types;
    struct cuda_location location;
    void *win32_metadata;
    unsigned char compression;
    unsigned char rdma_capable;
    unsigned short usage;
    unsigned char reserved[4];
};
_Static_assert(sizeof(struct cuda_allocation_properties) == 32, "CUmemAllocationProp");
_Static_assert(offsetof(struct cuda_allocation_properties, compression) == 24, "CUmemAllocationProp.allocFlags");

/* How a launch differs from one of cuLaunchKernel; one member of the union is all that is used here. */
struct cuda_launch_attribute {
    int id;
    unsigned char reserved[4];
    union {
        int serialized_by_program;
        unsigned char bytes[64];
    } value;
};
_Static_assert(sizeof(struct cuda_launch_attribute) == 72, "CUlaunchAttribute");

struct cuda_launch_config {
    unsigned int grid_x;
    unsigned int grid_y;
    unsigned int grid_z;
    unsigned int block_x;
    unsigned int block_y;
    unsigned int block_z;
    unsigned int shared_bytes;
    struct cuda_stream *stream;
    const struct cuda_launch_attribute *attributes;
    unsigned int attributes_nr;
};
_Static_assert(sizeof(struct cuda_launch_config) == 56, "CUlaunchConfig");

/* ------------------------------------------------------------------------------------------------------- numbers */

/* CUresult: those that the code looks at; cuda_error.def has all that mean something to us. */
enum cuda_result {
    CUDA_RESULT_OK = 0,
    CUDA_RESULT_INVALID_VALUE = 1,
    CUDA_RESULT_OUT_OF_MEMORY = 2,
    CUDA_RESULT_NO_DEVICE = 100,
    CUDA_RESULT_ALREADY_MAPPED = 208,
    CUDA_RESULT_INVALID_HANDLE = 400,
    CUDA_RESULT_NOT_FOUND = 500,
    CUDA_RESULT_NOT_READY = 600,
    CUDA_RESULT_NOT_SUPPORTED = 801
};

enum cuda_device_attribute {
    CUDA_DEVICE_MULTIPROCESSORS = 16,
    CUDA_DEVICE_MEMORY_CLOCK_KHZ = 36,
    CUDA_DEVICE_MEMORY_BUS_BITS = 37,
    CUDA_DEVICE_UNIFIED_ADDRESSING = 41,
    CUDA_DEVICE_COMPUTE_MAJOR = 75,
    CUDA_DEVICE_COMPUTE_MINOR = 76,
    CUDA_DEVICE_HOST_REGISTER = 99,
    CUDA_DEVICE_VMM = 102,
    CUDA_DEVICE_VMM_POSIX_FD = 103,
    CUDA_DEVICE_STREAM_MEM_OPS_64 = 122,
    CUDA_DEVICE_MPS_ENABLED = 133
};

enum cuda_pointer_attribute {
    CUDA_POINTER_BUFFER_ID = 7,
    CUDA_POINTER_DEVICE_ORDINAL = 9,
    CUDA_POINTER_MEMORY_BLOCK_ID = 20
};

enum {
    CUDA_STREAM_NON_BLOCKING = 1,
    CUDA_IPC_LAZY_PEER_ACCESS = 1,
    CUDA_HOST_REGISTER_PORTABLE = 1,
    CUDA_HOST_REGISTER_DEVICE_MAP = 2,
    CUDA_HANDLE_POSIX_FD = 1,
    CUDA_LOCATION_DEVICE = 1,
    CUDA_ALLOCATION_PINNED = 1,
    CUDA_ACCESS_READ_WRITE = 3,
    CUDA_GRANULARITY_MINIMUM = 0,
    CUDA_LAUNCH_SERIALIZED_BY_PROGRAM = 6 /* may begin when the launch before it says so: the kernel waits itself */
};

/* The oldest driver that has what we call: 12.0. */
#define CUDA_DRIVER_MINIMUM 12000

/* ------------------------------------------------------------------------------------------------------- the table */

struct cuda_api {
    int driver_version; /* 13000: 13.0 */
#define CUDA_CALL(need, name, abi, parameters) int(*name) parameters;
#include "cuda_api.def"
};

/*
 * Loads libcuda.so.1 and starts it (cuInit), once; after a failure the next call tries again. Sets
 * CUDA_DEVICE_MAX_CONNECTIONS=32 and CUDA_MODULE_LOADING=EAGER before, unless they are set. May block for seconds.
 * NULL: `err` says why.
 */
const struct cuda_api *cuda_api_get(struct error *err);

#endif
