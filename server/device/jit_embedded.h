/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of kernels/ that are in the binary, so that the daemon needs no source at run time.
 *
 * Owns:     constant text, each with its NUL.
 * Thread:   any.
 * Lifetime: the process.
 * Errors:   -
 */
#ifndef MLACAT_DEVICE_JIT_EMBEDDED_H
#define MLACAT_DEVICE_JIT_EMBEDDED_H

extern const char jit_embedded_source[];
extern const char jit_embedded_header[];
/* The source compiled for compute capability 7.5 and the start set; empty where the build had no nvcc. */
extern const char jit_embedded_ptx[];

#endif
