/* SPDX-License-Identifier: Apache-2.0 */
/* CMake names the files and rebuilds this one when they change. */
#include "jit_embedded.h"

/* `name`: the bytes of the file, and a NUL. */
#define EMBED(name, file)                            \
    __asm__(".section .rodata\n"                     \
            ".balign 16\n"                           \
            ".global " #name "\n"                    \
            ".hidden " #name "\n"                    \
            ".type " #name ", %object\n" #name ":\n" \
            ".incbin \"" file "\"\n"                 \
            ".byte 0\n"                              \
            ".size " #name ", . - " #name "\n"       \
            ".previous\n")

EMBED(jit_embedded_source, JIT_SOURCE_FILE);
EMBED(jit_embedded_header, JIT_HEADER_FILE);
EMBED(jit_embedded_ptx, JIT_PTX_FILE);
