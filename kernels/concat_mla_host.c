/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Three ways to copy a part of a row, one of them chosen for a call:
 *   plain    memcpy: output that fits the caches, and processors without non-temporal stores
 *   aligned  16-byte loads and non-temporal stores, where every address, stride and width is a multiple of 16
 *   bounced  any alignment: what follows each other in the output is put together in a buffer that stays in the first
 *            cache, and leaves it as whole lines by non-temporal stores
 * A store to an uncached line costs the read of that line too; a non-temporal one does not. Rows of a strided input are
 * fetched ahead, because processors do not foresee the gaps. tests/bench/bench_host_kernel shows what it is worth.
 */
#include "concat_mla_host.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#define HAVE_STREAMING 1
#else
#define HAVE_STREAMING 0
#endif

enum way { WAY_PLAIN, WAY_ALIGNED, WAY_BOUNCED };

#define LINE_BYTES 64
#define AHEAD_ROWS 8 /* measured: fewer come too late, more push each other out */
/* Measured: small enough that loads and non-temporal stores take turns often, large enough for a few rows. */
#define BOUNCE_BYTES 1024

/* Output that has been put together but not written: bytes [from, to) of `bytes`, which go to line + from. */
struct bounce {
    /* Aligned to its size: a store across two pages takes as long as all the rest of a row. */
    _Alignas(BOUNCE_BYTES) unsigned char bytes[BOUNCE_BYTES];
    unsigned char *line; /* a multiple of LINE_BYTES */
    size_t from;
    size_t to;
};

#if HAVE_STREAMING

/* The address may lie past the operand: fetching ahead never faults. */
static inline void fetch(const unsigned char *in, ptrdiff_t ahead)
{
    _mm_prefetch((const char *)((uintptr_t)in + (uintptr_t)ahead), _MM_HINT_T0);
}

static inline void stream_16(unsigned char *out, const unsigned char *in)
{
    _mm_stream_si128((__m128i *)(void *)out, _mm_load_si128((const __m128i *)(const void *)in));
}

/* All loads before the stores, so that they are under way together. */
static inline void stream_line(unsigned char *out, const unsigned char *in)
{
    __m128i v0 = _mm_load_si128((const __m128i *)(const void *)in);
    __m128i v1 = _mm_load_si128((const __m128i *)(const void *)(in + 16));
    __m128i v2 = _mm_load_si128((const __m128i *)(const void *)(in + 32));
    __m128i v3 = _mm_load_si128((const __m128i *)(const void *)(in + 48));
    _mm_stream_si128((__m128i *)(void *)out, v0);
    _mm_stream_si128((__m128i *)(void *)(out + 16), v1);
    _mm_stream_si128((__m128i *)(void *)(out + 32), v2);
    _mm_stream_si128((__m128i *)(void *)(out + 48), v3);
}

static void copy_aligned(unsigned char *out, const unsigned char *in, size_t size, ptrdiff_t ahead)
{
    for (; size >= LINE_BYTES; size -= LINE_BYTES) {
        fetch(in, ahead);
        stream_line(out, in);
        out += LINE_BYTES;
        in += LINE_BYTES;
    }
    for (size_t t = 0; t < size; t += 16) {
        stream_16(out + t, in + t);
    }
}

/* Writes what is there and nothing beside it: the line at each end may hold bytes of others. */
static void bounce_flush(struct bounce *bounce)
{
    size_t lines_from = (bounce->from + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
    size_t lines_to = bounce->to / LINE_BYTES * LINE_BYTES;
    if (bounce->from == bounce->to) {
        return;
    }
    if (lines_from > lines_to) { /* within one line */
        memcpy(bounce->line + bounce->from, bounce->bytes + bounce->from, bounce->to - bounce->from);
        return;
    }
    memcpy(bounce->line + bounce->from, bounce->bytes + bounce->from, lines_from - bounce->from);
    for (size_t t = lines_from; t < lines_to; t += LINE_BYTES) {
        stream_line(bounce->line + t, bounce->bytes + t);
    }
    memcpy(bounce->line + lines_to, bounce->bytes + lines_to, bounce->to - lines_to);
}

static void copy_bounced(struct bounce *bounce, unsigned char *out, const unsigned char *in, size_t size,
                         ptrdiff_t ahead)
{
    if (bounce->from == bounce->to || out != bounce->line + bounce->to) { /* not where the last part ended */
        bounce_flush(bounce);
        bounce->from = bounce->to = (uintptr_t)out % LINE_BYTES;
        bounce->line = out - bounce->from;
    }
    while (size > 0) {
        size_t room = BOUNCE_BYTES - bounce->to;
        size_t part = size < room ? size : room;
        for (size_t t = 0; t < part; t += LINE_BYTES) {
            fetch(in + t, ahead);
        }
        memcpy(bounce->bytes + bounce->to, in, part);
        bounce->to += part;
        in += part;
        size -= part;
        if (bounce->to == BOUNCE_BYTES) {
            bounce_flush(bounce);
            bounce->line += BOUNCE_BYTES;
            bounce->from = bounce->to = 0;
        }
    }
}

static enum way choose_way(const struct concat_mla_args *args, int streaming)
{
    unsigned long long all = (uintptr_t)args->out | (uintptr_t)args->a | (uintptr_t)args->b;
    all |= args->a_bytes | args->b_bytes;
    all |= (unsigned long long)(args->out_stride0 | args->out_stride1);
    all |= (unsigned long long)(args->a_stride0 | args->a_stride1 | args->b_stride0 | args->b_stride1);
    return !streaming ? WAY_PLAIN : all % 16 == 0 ? WAY_ALIGNED : WAY_BOUNCED;
}

static inline void copy_part(enum way way, struct bounce *bounce, unsigned char *out, const unsigned char *in,
                             size_t size, ptrdiff_t ahead)
{
    if (way == WAY_ALIGNED) {
        copy_aligned(out, in, size, ahead);
    } else if (way == WAY_BOUNCED) {
        copy_bounced(bounce, out, in, size, ahead);
    } else {
        memcpy(out, in, size);
    }
}

static void finish(enum way way, struct bounce *bounce)
{
    bounce_flush(bounce);
    if (way != WAY_PLAIN) {
        _mm_sfence(); /* nothing else orders non-temporal stores before the store that tells the caller's peer */
    }
}

#else

static enum way choose_way(const struct concat_mla_args *args, int streaming)
{
    (void)args;
    (void)streaming;
    return WAY_PLAIN;
}

static inline void copy_part(enum way way, struct bounce *bounce, unsigned char *out, const unsigned char *in,
                             size_t size, ptrdiff_t ahead)
{
    (void)way;
    (void)bounce;
    (void)ahead;
    memcpy(out, in, size);
}

static void finish(enum way way, struct bounce *bounce)
{
    (void)way;
    (void)bounce;
}

#endif

/* Rows begin .. begin + nr of one i. */
static void copy_rows(const struct concat_mla_args *args, unsigned long long begin, unsigned long long nr, enum way way,
                      struct bounce *bounce)
{
    ptrdiff_t i = (ptrdiff_t)(begin / args->dim1);
    ptrdiff_t j = (ptrdiff_t)(begin % args->dim1);
    unsigned char *out = (unsigned char *)args->out + i * args->out_stride0 + j * args->out_stride1;
    const unsigned char *a = args->a;
    const unsigned char *b = args->b;
    if (args->a_bytes == 0) {
        a = NULL;
    }
    if (args->b_bytes == 0) {
        b = NULL;
    }
    if (a) {
        a += i * args->a_stride0 + j * args->a_stride1;
    }
    if (b) {
        b += i * args->b_stride0 + j * args->b_stride1;
    }
    for (; nr > 0; nr--) {
        if (a) {
            copy_part(way, bounce, out, a, args->a_bytes, AHEAD_ROWS * (ptrdiff_t)args->a_stride1);
            a += args->a_stride1;
        }
        if (b) {
            copy_part(way, bounce, out + args->a_bytes, b, args->b_bytes, AHEAD_ROWS * (ptrdiff_t)args->b_stride1);
            b += args->b_stride1;
        }
        out += args->out_stride1;
    }
}

void concat_mla_host(const struct concat_mla_args *args, unsigned long long begin, unsigned long long end,
                     int streaming)
{
    enum way way = choose_way(args, streaming);
    struct bounce bounce;
    bounce.line = NULL;
    bounce.from = bounce.to = 0;
    while (begin < end) {
        unsigned long long left = args->dim1 - begin % args->dim1;
        unsigned long long nr = left < end - begin ? left : end - begin;
        copy_rows(args, begin, nr, way, &bounce);
        begin += nr;
    }
    finish(way, &bounce);
}

/* What one core's last-level cache holds; 0 if the kernel does not say. */
static unsigned long long cache_bytes_of_sysfs(void)
{
    unsigned long long kib = 0;
    FILE *file = fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "re");
    if (file) {
        if (fscanf(file, "%lluK", &kib) != 1) {
            kib = 0;
        }
        fclose(file);
    }
    return kib * 1024;
}

unsigned long long concat_mla_host_streaming_bytes(void)
{
    /* sysfs first: sysconf gives the sum over all cores' caches on some processors. */
    unsigned long long bytes = cache_bytes_of_sysfs();
    if (bytes == 0) {
#ifdef _SC_LEVEL3_CACHE_SIZE
        long size = sysconf(_SC_LEVEL3_CACHE_SIZE);
        bytes = size > 0 ? (unsigned long long)size : 0;
#endif
    }
    if (bytes == 0 || bytes > 1ull << 40) {
        bytes = 32ull << 20;
    }
    return bytes / 4 * 3;
}
