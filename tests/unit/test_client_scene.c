/* SPDX-License-Identifier: Apache-2.0 */
#include "test_client_scene.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

struct scene *scene_open(struct fake_mode mode, enum mlacat_dispatch dispatch)
{
    static struct scene scene;
    scene.fake = fake_start();
    fake_set(scene.fake, mode);
    scene.client = fake_client(scene.fake, dispatch);
    assert_int_equal(mlacat_stream_open(scene.client, NULL, &scene.stream), MLACAT_OK);
    assert_int_equal(mlacat_buffer_alloc(scene.client, "host", 4096, &scene.buffer), MLACAT_OK);
    scene.rings = fake_rings(scene.fake);
    scene.call = fake_call(scene.buffer);
    return &scene;
}

int scene_close(void **state)
{
    struct scene *scene = *state;
    mlacat_disconnect(scene->client);
    fake_stop(scene->fake);
    return 0;
}
