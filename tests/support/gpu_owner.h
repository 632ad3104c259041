/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process behind gpu_memory.h, and how it is spoken to: a packet for each request and each reply, on a connection
 * of each process that asks.
 *
 * Owns:     the process owns the allocations of its connections until they end.
 * Thread:   gpu_owner_main: the main thread of a child; the rest: any.
 * Lifetime: gpu_owner_listen -> gpu_owner_main in a child -> gpu_owner_connect as often as wanted.
 * Errors:   a failed check (require.h), or a reply that is not good.
 */
#ifndef MLACAT_TESTS_GPU_OWNER_H
#define MLACAT_TESTS_GPU_OWNER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "share.h"

enum gpu_owner_what { GPU_OWNER_OPEN, GPU_OWNER_MAKE, GPU_OWNER_FREE, GPU_OWNER_UPLOAD, GPU_OWNER_DOWNLOAD };

struct gpu_owner_request {
    enum gpu_owner_what what;
    uint32_t id;  /* of what MAKE made */
    size_t size;  /* MAKE: of the allocation; the memfd comes with the request */
    size_t bytes; /* MAKE: that an upload or a download copies */
};

struct gpu_owner_reply {
    bool good;
    uint32_t id;
    struct share share;
    char uuid[SHARE_UUID_BYTES]; /* OPEN */
    char text[256];              /* the reason if it is not good */
};

struct gpu_owner_address {
    struct sockaddr_un address;
    socklen_t size;
};

/* A socket without a file; the address is where it listens. */
int gpu_owner_listen(struct gpu_owner_address *address);
int gpu_owner_connect(const struct gpu_owner_address *address);
bool gpu_owner_send(int fd, const struct gpu_owner_request *request, int memfd);

/* `arg`: the listening descriptor, an int. Does not return. */
void gpu_owner_main(void *arg);

#endif
