/* SPDX-License-Identifier: Apache-2.0 */
/* CMake names the files and rebuilds this one when they change. */
#include "concat_mla_text.h"

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

EMBED(concat_mla_text_source, TEXT_SOURCE_FILE);
EMBED(concat_mla_text_header, TEXT_HEADER_FILE);
EMBED(concat_mla_text_ptx, TEXT_PTX_FILE);
