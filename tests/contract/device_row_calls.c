/* SPDX-License-Identifier: Apache-2.0 */
/* What is the same for every row: it goes through row.ops and the row's own kind of client memory. */
#include <fcntl.h>

#include "device_row.h"

/* Polls without a completion after which a call is taken for lost: a host device's each work up to about 1 ms. */
struct row row = {.polls_max = 100000};

struct imported row_memory_new(size_t size)
{
    struct imported made = {.client = client_memory_new(size, F_SEAL_SHRINK)};
    struct memory_request request = client_request(&made.client);
    struct error err;
    if (row.ops->mem_import(row.device, &request, &made.memory, &made.info, &err) != MLACAT_OK) {
        fail_msg("import refused: %s", err.message);
    }
    return made;
}

void row_memory_free(struct imported *memory)
{
    row.ops->mem_release(row.device, memory->memory);
    client_memory_free(&memory->client);
}

void row_poll_all(struct device_completion *done, int nr)
{
    struct error err;
    int have = 0;
    for (int polls = 0; have < nr && polls < row.polls_max; polls++) {
        int got = row.ops->poll(row.stream, done + have, nr - have, &err);
        if (got < 0) {
            fail_msg("device lost: %s", err.message);
        }
        have += got;
    }
    assert_int_equal(have, nr);
}

enum device_answer row_submit(struct device_stream *stream, const struct device_call *call, struct error *err)
{
    uint32_t nr = 1;
    enum device_answer answer = row.ops->submit(stream, call, &nr, err);
    assert_int_equal(nr, answer == DEVICE_OK);
    return answer;
}

struct device_completion row_run(const struct device_call *call)
{
    struct device_completion done;
    struct device_completion more;
    struct error err;
    assert_int_equal(row_submit(row.stream, call, &err), DEVICE_OK);
    row_poll_all(&done, 1);
    assert_int_equal(row.ops->poll(row.stream, &more, 1, &err), 0);
    assert_ptr_equal(done.cookie, call->cookie);
    return done;
}
