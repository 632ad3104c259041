/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client's side of GPU memory for tests: makes it and exports it.
 *
 * Owns:     one device's primary context; the memory until it is freed.
 * Thread:   any; share_open before the others. A forked child cannot use what its parent has opened.
 * Lifetime: share_open -> anything; the process's end gives all back.
 * Errors:   share_open returns false with a reason where there is no usable GPU; every other failure of the driver is a
 *           failed check (require.h).
 */
#ifndef MLACAT_TESTS_SHARE_H
#define MLACAT_TESTS_SHARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SHARE_CHUNKS 3
#define SHARE_UUID_BYTES 64
#define SHARE_HANDLE_BYTES 64

struct share {
    uint64_t address;
    size_t size;
    uint32_t chunks_nr; /* 0: of cuMemAlloc */
    size_t chunk_bytes;
    int fds[SHARE_CHUNKS];
    uint64_t allocations[SHARE_CHUNKS];
    unsigned char handle[SHARE_HANDLE_BYTES];
    uint64_t buffer_id;
};

/* The first visible device, or another one: all that follows is on it. */
bool share_open(char uuid[SHARE_UUID_BYTES], char *reason, size_t reason_size);
bool share_open_nth(int ordinal, char uuid[SHARE_UUID_BYTES], char *reason, size_t reason_size);
/* Visible devices; 0 without a driver. */
int share_devices(void);
/* An entry point of the driver that a test calls itself: into a pointer to a function. False, and NULL: it has none. */
bool share_find(const char *name, int abi, void *slot);

/* cuMemAlloc with its IPC handle and BUFFER_ID; false: the driver has no such memory. */
bool share_try_alloc(struct share *share, size_t size);
void share_alloc(struct share *share, size_t size);
/* SHARE_CHUNKS chunks of cuMemCreate, one after the other, exported as descriptors. */
void share_alloc_chunks(struct share *share);
void share_free(struct share *share);

void share_write(const struct share *share, size_t at, const void *from, size_t size);
void share_read(const struct share *share, size_t at, void *to, size_t size);
/* Free memory of the device, as every process sees it. */
size_t share_free_bytes(void);
/* Copies within the device, waits for the end, and says how long it took. */
double share_copy_us(const struct share *to, const struct share *from, size_t size, int times);
/* The handle of an event of this process that is recorded behind a wait that never ends. */
void share_never(unsigned char handle[SHARE_HANDLE_BYTES]);

#endif
