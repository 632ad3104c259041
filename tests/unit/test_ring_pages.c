/* SPDX-License-Identifier: Apache-2.0 */
/* The memory of rings: what its descriptors allow a client to do with it, and whose is what. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mlacat_abi.h"
#include "ring.h"

#define RINGS 3
#define ENTRIES 8
#define CALLS (ENTRIES - 1) /* and a request to cancel */

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

static struct ring_pages *pages;

static int setup(void **state)
{
    struct error err;
    (void)state;
    if (ring_pages_new(RINGS, CALLS, &pages, &err) != MLACAT_OK) {
        print_error("%s\n", err.message);
        return -1;
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    ring_pages_free(pages);
    return 0;
}

static void test_ring_pages_are_sealed_and_whole_pages(void **state)
{
    const int common = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct stat client;
    struct stat daemon;
    (void)state;
    assert_int_equal(fcntl(pages->client_fd, F_GET_SEALS), common);
    assert_int_equal(fcntl(pages->daemon_fd, F_GET_SEALS), common | F_SEAL_FUTURE_WRITE);
    assert_int_equal(fstat(pages->client_fd, &client) | fstat(pages->daemon_fd, &daemon), 0);
    assert_int_equal(client.st_size, pages->client_bytes);
    assert_int_equal(daemon.st_size, pages->daemon_bytes);
    assert_int_equal(pages->client_bytes % page + pages->daemon_bytes % page, 0);
    assert_int_equal(pages->client_words_bytes % page + pages->daemon_words_bytes % page, 0);
    assert_true(pages->submissions_offset >= RINGS * sizeof(struct mlacat_ring_client));
    assert_true(pages->completions_offset >= RINGS * sizeof(struct mlacat_ring_daemon));
    assert_true(pages->messages_offset >=
                pages->completions_offset + RINGS * ENTRIES * sizeof(struct mlacat_ring_completion));
    assert_true(pages->daemon_bytes >= pages->messages_offset + RINGS * ENTRIES * MLACAT_ABI_MESSAGE_BYTES);
}

/* What a client could try with the descriptors that it gets. */
static void test_ring_pages_client_cannot_write_the_daemons_page(void **state)
{
    char path[64];
    (void)state;
    void *mapped = mmap(NULL, pages->daemon_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, pages->daemon_fd, 0);
    assert_ptr_equal(mapped, MAP_FAILED);
    assert_int_equal(pwrite(pages->daemon_fd, "x", 1, 0), -1);
    assert_int_equal(fallocate(pages->daemon_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
    assert_int_equal(ftruncate(pages->daemon_fd, 0), -1);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", pages->daemon_fd);
    int again = open(path, O_RDWR | O_CLOEXEC); /* a fresh description of the same file */
    if (again >= 0) {
        mapped = mmap(NULL, pages->daemon_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0);
        assert_ptr_equal(mapped, MAP_FAILED);
        close(again);
    }
    mapped = mmap(NULL, pages->daemon_bytes, PROT_READ, MAP_SHARED, pages->daemon_fd, 0);
    assert_ptr_not_equal(mapped, MAP_FAILED);
    assert_int_equal(mprotect(mapped, pages->daemon_bytes, PROT_READ | PROT_WRITE), -1);
    assert_int_equal(errno, EACCES);
    assert_int_equal(madvise(mapped, pages->daemon_bytes, MADV_REMOVE), -1);
    munmap(mapped, pages->daemon_bytes);
}

static void test_ring_pages_client_cannot_resize_its_page(void **state)
{
    (void)state;
    assert_int_equal(ftruncate(pages->client_fd, 0), -1);
    assert_int_equal(ftruncate(pages->client_fd, (off_t)pages->client_bytes + 4096), -1);
    assert_int_equal(fcntl(pages->client_fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
    void *mapped = mmap(NULL, pages->client_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, pages->client_fd, 0);
    assert_ptr_not_equal(mapped, MAP_FAILED);
    munmap(mapped, pages->client_bytes);
}

static void test_ring_pages_descriptors_are_closed_once_sent(void **state)
{
    (void)state;
    int fd = pages->client_fd;
    ring_pages_close_fds(pages);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    ring_pages_close_fds(pages);
}

/* The pages of each ring are its own, up to the last byte. */
static void test_ring_pages_neighbours_are_apart(void **state)
{
    struct ring others[RINGS];
    (void)state;
    for (uint32_t i = 0; i < RINGS; i++) {
        ring_init(&others[i], pages, i, 0);
    }
    memset((void *)(uintptr_t)others[1].submissions, 0xff, ENTRIES * sizeof(*others[1].submissions));
    memset(others[1].client, 0xff, sizeof(*others[1].client));
    memset(others[1].daemon, 0xff, sizeof(*others[1].daemon));
    memset(others[1].completions, 0xff, ENTRIES * sizeof(*others[1].completions));
    memset(others[1].messages, 0xff, ENTRIES * sizeof(*others[1].messages));
    for (uint32_t i = 0; i < RINGS; i += 2) {
        assert_int_equal(others[i].client->submit_tail | others[i].client->done | others[i].daemon->failed, 0);
        assert_int_equal(others[i].daemon->fence, 0);
        for (uint32_t k = 0; k < ENTRIES; k++) {
            assert_int_equal(others[i].submissions[k].call_id | others[i].submissions[k].reserved[1], 0);
            assert_int_equal(others[i].completions[k].call_id | others[i].completions[k].device_ns, 0);
            assert_int_equal(others[i].messages[k][0] | others[i].messages[k][MLACAT_ABI_MESSAGE_BYTES - 1], 0);
        }
    }
}

#define PAGES_TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PAGES_TEST(test_ring_pages_are_sealed_and_whole_pages),
        PAGES_TEST(test_ring_pages_client_cannot_write_the_daemons_page),
        PAGES_TEST(test_ring_pages_client_cannot_resize_its_page),
        PAGES_TEST(test_ring_pages_descriptors_are_closed_once_sent),
        PAGES_TEST(test_ring_pages_neighbours_are_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
