/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A GPU for test programs: the driver and NVRTC by dlopen, so that the programs build and start on machines that have
 * neither. The service has its own, stricter table; this one serves tests only.
 *
 * Owns:     the first visible device's primary context, two streams, every module that it compiled; gpu_close gives
 *           all back.
 * Thread:   the main thread only.
 * Lifetime: gpu_open -> anything -> gpu_close.
 * Errors:   gpu_open returns false with a reason where there is no usable GPU or no NVRTC. Everything else ends the
 *           program with status 1 and a message that names the driver's call.
 */
#ifndef MLACAT_TESTS_GPU_H
#define MLACAT_TESTS_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gpu;
struct gpu_module;
struct gpu_function;
struct gpu_event;

/* Exit status of a program that could not run its tests here. */
#define GPU_SKIPPED 77

struct gpu_info {
    char name[128];
    int driver_version; /* 13000 = 13.0 */
    int nvrtc_version;
    int arch; /* 90 = sm_90 */
    int multiprocessors;
    size_t cache_bytes;
    size_t memory_bytes;
    uint64_t memory_bytes_per_ms; /* read and written, by its clock and width */
};

/* False: `reason` says why there is nothing to test on. */
bool gpu_open(struct gpu_info *info, char *reason, size_t reason_size);
void gpu_close(void);

/*
 * Compiles a source file for the device and loads it. `header` is a file that the source includes by the name after the
 * last slash (NULL = none); `options` end with NULL. The compiler's log goes to stderr when it is not empty.
 */
struct gpu_module *gpu_compile(const char *path, const char *header, const char *const *options);
/* NULL if the module has no such kernel. */
struct gpu_function *gpu_find(struct gpu_module *module, const char *name);
void gpu_unload(struct gpu_module *module);

/* Asynchronous, on the one stream. */
void gpu_launch(struct gpu_function *function, unsigned grid, unsigned block, void **arguments);
/* One that the launch before it may let begin before its own end. */
void gpu_launch_behind(struct gpu_function *function, unsigned grid, unsigned block, void **arguments);
void gpu_copy(void *to, const void *from, size_t size);
void gpu_fill(void *to, unsigned char value, size_t size);
/* Writes a word of gpu_word_new after all that was enqueued before. */
void gpu_write_word(_Atomic uint64_t *word, uint64_t value);
void gpu_sync(void);
/* From now on on that stream of the device's primary context instead: the caller's, who keeps it. */
void gpu_use_stream(void *stream);

/* Wait until they are done. */
void gpu_upload(void *to, const void *from, size_t size);
/* On a second stream, whatever the one still does. */
void gpu_upload_beside(void *to, const void *from, size_t size);
void gpu_download(void *to, const void *from, size_t size);

void *gpu_alloc(size_t size); /* aligned to at least 256 bytes */
void gpu_free(void *memory);
size_t gpu_free_bytes(void);
/* A word that the GPU writes and the CPU reads; 0 at first. */
_Atomic uint64_t *gpu_word_new(void);
void gpu_word_free(_Atomic uint64_t *word);

struct gpu_event *gpu_event_new(void);
void gpu_event_free(struct gpu_event *event);
void gpu_event_record(struct gpu_event *event);
/* Waits for `end`. */
double gpu_event_us(struct gpu_event *begin, struct gpu_event *end);

#endif
