/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GPU kernels as text in the binary, so that a program needs none of these files at run time.
 *
 * Owns:     constant text, each with its NUL.
 * Thread:   any.
 * Lifetime: the process.
 * Errors:   -
 */
#ifndef CONCAT_MLA_TEXT_H
#define CONCAT_MLA_TEXT_H

/* concat_mla.cu, and concat_mla_args.h, which it includes. */
extern const char concat_mla_text_source[];
extern const char concat_mla_text_header[];
/* The source compiled for compute capability 7.5; empty where the build had no nvcc. */
extern const char concat_mla_text_ptx[];

#endif
