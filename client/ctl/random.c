/* SPDX-License-Identifier: Apache-2.0 */
#include "random.h"

#include <string.h>

#include "names.h"

#define BLOCK_BYTES 32768u
#define BLOCK_WORDS (BLOCK_BYTES / 8)
#define SPECIAL_STEP 13u
#define SPECIALS 8u

/* Two NaNs with payloads, NaN of all ones, both infinities (e4m3 has none: its largest numbers), two denormals, -0. */
static const uint32_t special_bf16[SPECIALS] = {0x7fc1, 0x7f81, 0xffff, 0x7f80, 0xff80, 0x0001, 0x807f, 0x8000};
static const uint32_t special_fp16[SPECIALS] = {0x7e01, 0x7c01, 0xffff, 0x7c00, 0xfc00, 0x0001, 0x83ff, 0x8000};
static const uint32_t special_e4m3[SPECIALS] = {0x7f, 0xff, 0x7f, 0x7e, 0xfe, 0x01, 0x87, 0x80};
static const uint32_t special_e5m2[SPECIALS] = {0x7d, 0x7e, 0xff, 0x7c, 0xfc, 0x01, 0x83, 0x80};
static const uint32_t special_fp32[SPECIALS] = {0x7fc00001, 0x7f800001, 0xffffffff, 0x7f800000,
                                                0xff800000, 0x00000001, 0x807fffff, 0x80000000};

static const uint32_t *specials(enum mlacat_dtype dtype)
{
    switch (dtype) {
    case MLACAT_DTYPE_BF16:
        return special_bf16;
    case MLACAT_DTYPE_FP16:
        return special_fp16;
    case MLACAT_DTYPE_FP8_E4M3:
        return special_e4m3;
    case MLACAT_DTYPE_FP8_E5M2:
        return special_e5m2;
    case MLACAT_DTYPE_FP32:
    case MLACAT_DTYPE_END_:
        break;
    }
    return special_fp32;
}

/* The finaliser of splitmix64: every bit of the counter reaches every bit of the word. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static void make_block(uint64_t seed, enum mlacat_dtype dtype, uint64_t index, uint8_t *block)
{
    const uint32_t *special = specials(dtype);
    size_t element = names_dtype_bytes(dtype);
    uint64_t counter = mix(seed + 1) + index * BLOCK_WORDS * 0x9e3779b97f4a7c15ull;

    for (size_t i = 0; i < BLOCK_WORDS; i++) {
        uint64_t word = mix(counter += 0x9e3779b97f4a7c15ull);

        memcpy(block + 8 * i, &word, 8);
    }
    for (size_t i = 0, k = 0; i < BLOCK_BYTES / element; i += SPECIAL_STEP, k++) {
        uint32_t bits = special[k % SPECIALS];

        for (size_t byte = 0; byte < element; byte++)
            block[i * element + byte] = (uint8_t)(bits >> (8 * byte));
    }
}

void random_fill(uint64_t seed, enum mlacat_dtype dtype, uint8_t *data, size_t bytes)
{
    uint8_t block[BLOCK_BYTES];
    size_t whole = bytes / BLOCK_BYTES;

    for (size_t i = 0; i < whole; i++)
        make_block(seed, dtype, i, data + i * BLOCK_BYTES);
    if (bytes % BLOCK_BYTES == 0)
        return;
    make_block(seed, dtype, whole, block);
    memcpy(data + whole * BLOCK_BYTES, block, bytes % BLOCK_BYTES);
}

bool random_unchanged(uint64_t seed, enum mlacat_dtype dtype, const uint8_t *data, size_t bytes, size_t *offset,
                      uint8_t *expected)
{
    uint8_t block[BLOCK_BYTES];

    for (size_t at = 0; at < bytes; at += BLOCK_BYTES) {
        size_t part = bytes - at < BLOCK_BYTES ? bytes - at : BLOCK_BYTES;

        make_block(seed, dtype, at / BLOCK_BYTES, block);
        if (memcmp(block, data + at, part) == 0)
            continue;
        for (size_t i = 0; i < part; i++) {
            if (block[i] == data[at + i])
                continue;
            *offset = at + i;
            *expected = block[i];
            return false;
        }
    }
    return true;
}
