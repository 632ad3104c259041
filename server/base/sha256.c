/* SPDX-License-Identifier: Apache-2.0 */
#include "sha256.h"

#include <string.h>

#define LENGTH_OFFSET (SHA256_BLOCK_BYTES - 8) /* of the message's length in its last block */

static const uint32_t round_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, unsigned bits)
{
    return x >> bits | x << (32 - bits);
}

static uint32_t load_be32(const uint8_t *in)
{
    return (uint32_t)in[0] << 24 | (uint32_t)in[1] << 16 | (uint32_t)in[2] << 8 | in[3];
}

static void store_be32(uint8_t *out, uint32_t value)
{
    for (int i = 3; i >= 0; i--, value >>= 8) {
        out[i] = (uint8_t)value;
    }
}

/* w[0..15] is the block; each later word depends on four before it. */
static void expand(uint32_t w[64], const uint8_t *block)
{
    for (int t = 0; t < 16; t++) {
        w[t] = load_be32(block + 4 * t);
    }
    for (int t = 16; t < 64; t++) {
        uint32_t near = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ w[t - 2] >> 10;
        uint32_t far = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ w[t - 15] >> 3;
        w[t] = near + w[t - 7] + far + w[t - 16];
    }
}

static void mix(uint32_t state[8], const uint8_t *block)
{
    uint32_t w[64];
    uint32_t v[8]; /* a b c d e f g h of the standard */
    expand(w, block);
    memcpy(v, state, sizeof(v));
    for (int t = 0; t < 64; t++) {
        uint32_t choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
        uint32_t majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
        uint32_t sum_e = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
        uint32_t sum_a = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
        uint32_t add = v[7] + sum_e + choice + round_constants[t] + w[t];
        memmove(v + 1, v, 7 * sizeof(v[0]));
        v[4] += add;
        v[0] = add + sum_a + majority;
    }
    for (int i = 0; i < 8; i++) {
        state[i] += v[i];
    }
}

void sha256_init(struct sha256 *hash)
{
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(hash->state, start, sizeof(start));
    hash->bytes_nr = 0;
}

void sha256_update(struct sha256 *hash, const void *bytes, size_t bytes_nr)
{
    const uint8_t *in = bytes;
    size_t held = hash->bytes_nr % SHA256_BLOCK_BYTES;
    hash->bytes_nr += bytes_nr;
    while (bytes_nr > 0) {
        size_t room = SHA256_BLOCK_BYTES - held;
        size_t part = bytes_nr < room ? bytes_nr : room;
        memcpy(hash->block + held, in, part);
        held += part;
        in += part;
        bytes_nr -= part;
        if (held == SHA256_BLOCK_BYTES) {
            mix(hash->state, hash->block);
            held = 0;
        }
    }
}

void sha256_final(struct sha256 *hash, uint8_t digest[SHA256_BYTES])
{
    static const uint8_t padding[SHA256_BLOCK_BYTES] = {0x80};
    uint64_t bits_nr = hash->bytes_nr * 8;
    size_t held = hash->bytes_nr % SHA256_BLOCK_BYTES;
    size_t pad = (held < LENGTH_OFFSET ? LENGTH_OFFSET : LENGTH_OFFSET + SHA256_BLOCK_BYTES) - held;
    uint8_t length[8];
    store_be32(length, (uint32_t)(bits_nr >> 32));
    store_be32(length + 4, (uint32_t)bits_nr);
    sha256_update(hash, padding, pad);
    sha256_update(hash, length, sizeof(length));
    for (int i = 0; i < 8; i++) {
        store_be32(digest + 4 * i, hash->state[i]);
    }
}
