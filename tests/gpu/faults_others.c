/* SPDX-License-Identifier: Apache-2.0 */
/* The children of gpu_faults that use the GPU without the service. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "gpu.h"
#include "gpu_faults.h"
#include "require.h"
#include "share.h"

#define COPY_BYTES ((size_t)1 << 20)
#define SMALLEST_BYTES ((size_t)2 << 20)
#define SEEN_BYTES (FAULTS_GIVEN_BYTES / 4 * 3)
#define KERNEL_BYTES ((uint64_t)4 << 30)
#define KERNELS 1000

static void open_device(void)
{
    char uuid[SHARE_UUID_BYTES];
    char reason[256];
    REQUIRE(share_open(uuid, reason, sizeof(reason)), "%s", reason);
}

void faults_run_copies(void *arg)
{
    struct faults *faults = arg;
    struct share from;
    struct share to;
    open_device();
    share_alloc(&from, COPY_BYTES);
    share_alloc(&to, COPY_BYTES);
    child_ready();
    while (!atomic_load(&faults->stop)) {
        share_copy_us(&to, &from, COPY_BYTES, 1);
        atomic_fetch_add(&faults->copies, 1);
    }
}

void faults_take_all_memory(void *arg)
{
    struct faults *faults = arg;
    struct share share;
    open_device();
    for (size_t size = (size_t)64 << 30; size >= SMALLEST_BYTES; size /= 2) {
        while (share_try_alloc(&share, size)) {
            atomic_fetch_add(&faults->pieces, 1);
        }
    }
    child_ready();
    for (;;) {
        if (share_try_alloc(&share, SMALLEST_BYTES)) {
            atomic_fetch_add(&faults->pieces, 1);
        } else {
            nap();
        }
    }
}

void faults_watch_memory(void *arg)
{
    struct faults *faults = arg;
    open_device();
    child_ready();
    WAIT_UNTIL(atomic_load(&faults->taken_free_bytes) != 0); /* what is free while the memory is in use */
    uint64_t enough = atomic_load(&faults->taken_free_bytes) + SEEN_BYTES;
    WAIT_UNTIL(atomic_load(&faults->freed_ns) != 0);
    WAIT_UNTIL(share_free_bytes() >= enough);
    atomic_store(&faults->seen_ms, (clock_now_ns() - atomic_load(&faults->freed_ns)) / 1000000);
}

void faults_free_and_stay(struct faults *faults, struct share *large)
{
    atomic_store(&faults->taken_free_bytes, share_free_bytes());
    share_free(large);
    atomic_store(&faults->freed_ns, clock_now_ns());
    child_ready();
    WAIT_UNTIL(atomic_load(&faults->stop));
}

/* One block for gigabytes: each kernel takes long, and there is always one. */
void faults_run_long_kernels(void *arg)
{
    struct gpu_info info;
    char reason[256];
    (void)arg;
    const char *root = getenv("MLACAT_GPU_ROOT");
    char source[1024];
    char header[1024];
    snprintf(source, sizeof(source), "%s/tests/gpu/reference.cu", root ? root : ".");
    snprintf(header, sizeof(header), "%s/kernels/concat_mla_args.h", root ? root : ".");
    REQUIRE(gpu_open(&info, reason, sizeof(reason)), "%s", reason);
    struct gpu_function *fill = gpu_find(gpu_compile(source, header, NULL), "fill_random");
    void *to = gpu_alloc(KERNEL_BYTES);
    uint64_t size = KERNEL_BYTES;
    uint64_t seed = 1;
    for (int i = 0; i < KERNELS; i++) {
        gpu_launch(fill, 1, 256, (void *[]){&to, &size, &seed});
        if (i == 2) {
            child_ready(); /* they are on their way, and the queue is full before long */
        }
    }
    gpu_sync();
    child_park();
}
