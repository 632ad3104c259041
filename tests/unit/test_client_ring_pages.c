/* SPDX-License-Identifier: Apache-2.0 */
/* What a daemon says of the pages of its rings: all of it is checked before a byte of them is looked at. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "ring_pages.h"

#define RINGS 3u
#define ENTRIES 16u
#define CLIENT_BYTES (4096 + RINGS * ENTRIES * sizeof(struct mlacat_ring_submission))
#define MESSAGES_OFFSET (4096 + RINGS * ENTRIES * sizeof(struct mlacat_ring_completion))
#define DAEMON_BYTES (MESSAGES_OFFSET + RINGS * ENTRIES * MLACAT_ABI_MESSAGE_BYTES)

static Mlacat__V1__RingsOpened good(void)
{
    Mlacat__V1__RingsOpened told = MLACAT__V1__RINGS_OPENED__INIT;
    told.rings = RINGS;
    told.entries = ENTRIES;
    told.client_bytes = CLIENT_BYTES;
    told.daemon_bytes = DAEMON_BYTES;
    told.client_stride = sizeof(struct mlacat_ring_client);
    told.daemon_stride = sizeof(struct mlacat_ring_daemon);
    told.submissions_offset = 4096;
    told.completions_offset = 4096;
    told.messages_offset = MESSAGES_OFFSET;
    return told;
}

static int make_file(uint64_t bytes, int seals)
{
    int fd = memfd_create("page", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static void expect_refused(const Mlacat__V1__RingsOpened *told, const struct wire_fds *fds, const char *text)
{
    struct ring_pages *pages;
    struct error err;
    assert_int_equal(ring_pages_map(told, fds, &pages, &err), MLACAT_INTERNAL);
    assert_non_null(strstr(err.message, text));
    assert_null(pages);
}

static int setup(void **state)
{
    static struct wire_fds fds;
    fds.nr = 2;
    fds.fd[0] = make_file(CLIENT_BYTES, F_SEAL_SHRINK);
    fds.fd[1] = make_file(DAEMON_BYTES, F_SEAL_SHRINK);
    *state = &fds;
    return 0;
}

static int teardown(void **state)
{
    wire_close_fds(*state);
    return 0;
}

/* The last byte of each part is there. */
static void test_client_ring_pages_hold_what_was_told(void **state)
{
    const struct wire_fds *fds = *state;
    const Mlacat__V1__RingsOpened told = good();
    struct ring_pages *pages;
    struct error err;
    assert_int_equal(ring_pages_map(&told, fds, &pages, &err), MLACAT_OK);
    ring_pages_client(pages, RINGS - 1)->done = 1;
    assert_int_equal(ring_pages_daemon(pages, RINGS - 1)->failed, 0);
    ring_pages_submissions(pages, RINGS - 1)[ENTRIES - 1].reserved[1] = 0;
    assert_int_equal(ring_pages_completions(pages, RINGS - 1)[ENTRIES - 1].device_ns, 0);
    assert_int_equal(ring_pages_messages(pages, RINGS - 1)[ENTRIES * MLACAT_ABI_MESSAGE_BYTES - 1], 0);
    ring_pages_put(pages);
}

static void test_client_ring_pages_refuse_nonsense(void **state)
{
#define WRONG(field, value)                          \
    do {                                             \
        Mlacat__V1__RingsOpened told = good();       \
        told.field = (value);                        \
        expect_refused(&told, *state, "no sense ("); \
    } while (0)
    WRONG(rings, 0);
    WRONG(rings, RINGS + 1);
    WRONG(rings, UINT32_MAX);
    WRONG(entries, 0);
    WRONG(entries, 1);
    WRONG(entries, ENTRIES - 1);
    WRONG(entries, 2 * ENTRIES);
    WRONG(entries, 1u << 31);
    WRONG(client_bytes, CLIENT_BYTES - 1);
    WRONG(client_bytes, UINT64_MAX);
    WRONG(daemon_bytes, DAEMON_BYTES - 1);
    WRONG(daemon_bytes, UINT64_MAX);
    WRONG(client_stride, sizeof(struct mlacat_ring_client) - MLACAT_ABI_LINE);
    WRONG(client_stride, sizeof(struct mlacat_ring_client) + 1);
    WRONG(client_stride, UINT32_MAX - 127);
    WRONG(daemon_stride, 0);
    WRONG(daemon_stride, UINT32_MAX - 127);
    WRONG(submissions_offset, 4096 + 128);
    WRONG(submissions_offset, 4);
    WRONG(submissions_offset, UINT64_MAX - 127);
    WRONG(completions_offset, DAEMON_BYTES);
    WRONG(completions_offset, UINT64_MAX - 127);
    WRONG(messages_offset, MESSAGES_OFFSET + 128);
    WRONG(messages_offset, UINT64_MAX - 127);
}

/* Past the end of its file a mapping is a SIGBUS. */
static void test_client_ring_pages_refuse_files_that_are_too_short(void **state)
{
    const Mlacat__V1__RingsOpened told = good();
    for (int i = 0; i < 2; i++) {
        struct wire_fds fds = *(struct wire_fds *)*state;
        fds.fd[i] = make_file((i == 0 ? CLIENT_BYTES : DAEMON_BYTES) - 1, F_SEAL_SHRINK);
        expect_refused(&told, &fds, "shorter than");
        close(fds.fd[i]);
    }
}

static void test_client_ring_pages_refuse_files_that_may_become_so(void **state)
{
    const Mlacat__V1__RingsOpened told = good();
    struct wire_fds fds = *(struct wire_fds *)*state;
    fds.fd[1] = make_file(DAEMON_BYTES, F_SEAL_GROW);
    expect_refused(&told, &fds, "not sealed");
    close(fds.fd[1]);
    fds.fd[1] = STDERR_FILENO;
    expect_refused(&told, &fds, "not sealed");
    fds.nr = 1;
    expect_refused(&told, &fds, "1 descriptors");
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_client_ring_pages_hold_what_was_told),
        CASE(test_client_ring_pages_refuse_nonsense),
        CASE(test_client_ring_pages_refuse_files_that_are_too_short),
        CASE(test_client_ring_pages_refuse_files_that_may_become_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
