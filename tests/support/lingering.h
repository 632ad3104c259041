/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A descriptor whose last close blocks: a TCP socket that lingers for a peer that reads nothing.
 *
 * Owns:     both ends; `fd` may be given away, and then the one who closes it last waits.
 * Thread:   any.
 * Lifetime: lingering_make -> lingering_release, which lets a close that waits return.
 * Errors:   lingering_make returns false: this machine has no loopback network.
 */
#ifndef MLACAT_TESTS_LINGERING_H
#define MLACAT_TESTS_LINGERING_H

#include <stdbool.h>

/* Far longer than any test takes for what it does meanwhile, on a busy machine too; so short that one that waits for it
 * by mistake ends within its time limit. */
#define LINGERING_SECONDS 60

struct lingering {
    int listener;
    int peer;
    int fd;
};

bool lingering_make(struct lingering *made);
void lingering_release(struct lingering *lingering);

#endif
