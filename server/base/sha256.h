/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SHA-256 (FIPS 180-4), for names and checksums of cache entries; not fast enough for bulk data.
 *
 * Owns:     nothing.
 * Thread:   any; a struct sha256 belongs to one thread at a time.
 * Lifetime: init -> update* -> final; a value, nothing to free.
 * Errors:   none.
 */
#ifndef MLACAT_BASE_SHA256_H
#define MLACAT_BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_BYTES 32
#define SHA256_BLOCK_BYTES 64

struct sha256 {
    uint32_t state[8];
    uint64_t bytes_nr;
    uint8_t block[SHA256_BLOCK_BYTES]; /* the last bytes_nr % SHA256_BLOCK_BYTES bytes, not mixed in yet */
};

void sha256_init(struct sha256 *hash);
void sha256_update(struct sha256 *hash, const void *bytes, size_t bytes_nr);
/* `hash` needs another init after it. */
void sha256_final(struct sha256 *hash, uint8_t digest[SHA256_BYTES]);

#endif
