/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A CUDA stream over the driver of cuda_driver.h, with a GiB of a client's memory, and the words of a ring if asked.
 *
 * Owns:     the objects below.
 * Thread:   one.
 * Lifetime: scene_open -> scene_close, around each test.
 * Errors:   fail the test.
 */
#ifndef MLACAT_TESTS_CUDA_SCENE_H
#define MLACAT_TESTS_CUDA_SCENE_H

#include <stdbool.h>

#include "cuda_driver.h"
#include "cuda_memory.h"
#include "cuda_pages.h"
#include "cuda_stream.h"

#define MIB ((uint64_t)1 << 20)
#define PAGE 4096

extern struct device device;
extern struct device_memory *memory;
extern unsigned char *mapping; /* with words, the caller's: page 0 has the fence, page 1 `done` and `ready` */
extern struct device_words words;
extern struct device_stream *stream;
extern struct error err;

struct device_pages *register_page(unsigned char *page);

void scene_open(bool with_words);
void scene_close(void);

/* A K call of `rows` rows of 192 bytes in the memory; its cookie is its sequence number. */
struct device_call scene_call(uint64_t rows, uint64_t sequence);
/* Submits the one call. */
enum device_answer scene_submit(struct device_stream *to, const struct device_call *call);

#endif
