/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the daemon and its compile helper say to each other: greeting, request, answer, each a header and a payload.
 * Both ends are the same binary.
 *
 * Owns:     nothing.
 * Thread:   -
 * Lifetime: plain values.
 * Errors:   -
 */
#ifndef MLACAT_DEVICE_JIT_TEXT_H
#define MLACAT_DEVICE_JIT_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

#define JIT_ARCHS_MAX 64
#define JIT_OPTIONS_MAX 16
#define JIT_REQUEST_MAX ((size_t)4 << 20)
#define JIT_IMAGE_MAX ((size_t)64 << 20)

/* One compilation: a source, the one header that it includes by `header_name`, options. */
struct jit_text {
    const char *source_name;
    const char *source;
    const char *header_name;
    const char *header;
    uint32_t options_nr;
    const char *options[JIT_OPTIONS_MAX];
};

struct jit_compiled {
    void *bytes; /* malloc'ed */
    size_t bytes_nr;
    bool ptx;
};

/*
 * GREETING  helper: struct jit_greeting
 * REQUEST   daemon: source_name, source, header_name, header, then the options, each with its NUL
 * IMAGE     helper: the cubin, or the PTX with its NUL
 * FAILED    helper, in place of any other: struct error
 */
enum jit_packet_kind { JIT_GREETING = 1, JIT_REQUEST, JIT_IMAGE_CUBIN, JIT_IMAGE_PTX, JIT_FAILED };

#define JIT_PACKET_MAGIC UINT32_C(0x4d4c4a31)

struct jit_packet {
    uint32_t magic;
    uint32_t kind;
    uint64_t bytes_nr; /* of the payload */
};

struct jit_greeting {
    uint32_t nvrtc_version;
    uint32_t archs_nr;
    uint32_t archs[JIT_ARCHS_MAX];
};

#endif
