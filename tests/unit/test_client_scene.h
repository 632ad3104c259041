/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What most suites of the client begin with: a fake daemon, and a client of it with a stream, a buffer and a call that
 * fits both.
 *
 * Owns:     one scene, in static memory.
 * Thread:   that of the test.
 * Lifetime: scene_open -> scene_close, a setup and a teardown of cmocka.
 * Errors:   a failed check.
 */
#ifndef TEST_CLIENT_SCENE_H
#define TEST_CLIENT_SCENE_H

#include "test_client_fake.h"
#include "test_client_rings.h"

struct scene {
    struct fake *fake;
    struct rings *rings; /* NULL: the daemon has none */
    struct mlacat_client *client;
    struct mlacat_stream *stream; /* on the first device that is there */
    struct mlacat_buffer *buffer; /* 4096 bytes of the host device */
    struct mlacat_call call;
};

struct scene *scene_open(struct fake_mode mode, enum mlacat_dispatch dispatch);
int scene_close(void **state);

#endif
