/* SPDX-License-Identifier: Apache-2.0 */
/* The contract of open, mem_import and mem_release. */
#include "device_row.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE ((size_t)sysconf(_SC_PAGESIZE))

/* The import is refused with this code, says each word (separated by '|'), and has taken every descriptor. */
static void assert_refused(struct memory_request *request, int fds_before, enum mlacat_status code, const char *words)
{
    char copy[120];
    char *rest = copy;
    struct device_memory *memory = NULL;
    struct memory_info info;
    struct error err;
    assert_int_equal(row.ops->mem_import(row.device, request, &memory, &info, &err), code);
    assert_null(memory);
    assert_int_equal(open_fds(), fds_before);
    snprintf(copy, sizeof(copy), "%s", words);
    for (char *word = strtok_r(copy, "|", &rest); word; word = strtok_r(NULL, "|", &rest)) {
        if (!strstr(err.message, word)) {
            fail_msg("no \"%s\" in: %s", word, err.message);
        }
    }
}

static void test_device_open_names_the_device(void **state)
{
    (void)state;
    struct device *other = NULL;
    struct device_info info;
    struct error err;
    assert_true(row.info.uuid[0] && row.info.name[0] && row.info.kind[0]);
    assert_int_equal(row.ops->open(row.info.uuid, &other, &info, &err), DEVICE_OK);
    assert_string_equal(info.uuid, row.info.uuid);
    row.ops->close(other);
    assert_int_equal(row.ops->open("no-such-device", &other, &info, &err), DEVICE_NODEV);
    assert_non_null(strstr(err.message, "no-such-device"));
}

static void test_device_import_tells_what_the_memory_is(void **state)
{
    (void)state;
    int fds = open_fds();
    struct imported first = row_memory_new(5 * PAGE);
    struct imported other = row_memory_new(PAGE);
    assert_int_equal(open_fds(), fds + 2); /* the client's own */
    struct memory_request request = client_request(&first.client);
    request.size_bytes = 2 * PAGE + 1;
    struct device_memory *again;
    struct memory_info info;
    struct error err;
    assert_int_equal(row.ops->mem_import(row.device, &request, &again, &info, &err), MLACAT_OK);
    assert_int_equal(info.memory.size_bytes, 2 * PAGE + 1);
    assert_int_equal(info.charged_bytes, 5 * PAGE); /* the whole file */
    assert_memory_equal(&info.memory.allocation, &first.info.memory.allocation, sizeof(info.memory.allocation));
    assert_memory_not_equal(&info.memory.allocation, &other.info.memory.allocation, sizeof(info.memory.allocation));
    assert_int_equal(info.memory.allocation_offset_bytes, 0);
    row.ops->mem_release(row.device, again);
    row_memory_free(&first);
    row_memory_free(&other);
    assert_int_equal(open_fds(), fds);
}

static void test_device_import_checks_the_size(void **state)
{
    (void)state;
    struct client_memory client = client_memory_new(2 * PAGE, F_SEAL_SHRINK);
    int fds = open_fds();
    struct memory_request request = client_request(&client);
    request.size_bytes = 0;
    assert_refused(&request, fds, MLACAT_INVALID_ARGUMENT, "size 0");
    request = client_request(&client);
    request.size_bytes++;
    assert_refused(&request, fds, MLACAT_INVALID_ARGUMENT, "memfd of");
    request = client_request(&client);
    request.size_bytes = UINT64_MAX;
    assert_refused(&request, fds, MLACAT_INVALID_ARGUMENT, "18446744073709551615");
    request = client_request(&client);
    request.size_bytes = 1;
    request.limit_bytes = 2 * PAGE - 1; /* one byte is asked for, but the file counts in full */
    assert_refused(&request, fds, MLACAT_RESOURCE_EXHAUSTED, "in full|max_mapped");
    client_memory_free(&client);
}

static void test_device_import_checks_the_seals(void **state)
{
    (void)state;
    static const struct {
        int seals;
        const char *words;
    } cases[] = {
        {0, "without F_SEAL_SHRINK|F_ADD_SEALS"},
        {F_SEAL_GROW, "without F_SEAL_SHRINK"},
        {F_SEAL_SHRINK | F_SEAL_WRITE, "forbid writing"},
        {F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE, "forbid writing"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct client_memory client = client_memory_new(PAGE, cases[i].seals);
        int fds = open_fds();
        struct memory_request request = client_request(&client);
        assert_refused(&request, fds, MLACAT_FAILED_PRECONDITION, cases[i].words);
        client_memory_free(&client);
    }
}

static void test_device_import_refuses_other_descriptors(void **state)
{
    (void)state;
    struct client_memory client = client_memory_new(PAGE, F_SEAL_SHRINK);
    int fds = open_fds();
    int ends[2];
    struct memory_request request = client_request(&client);
    close(request.fds[0]);
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    close(ends[1]);
    request.fds[0] = ends[0];
    assert_refused(&request, fds, MLACAT_INVALID_ARGUMENT, "not a memfd");

    char path[64];
    request = client_request(&client);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", request.fds[0]);
    int read_only = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(read_only >= 0);
    close(request.fds[0]);
    request.fds[0] = read_only;
    assert_refused(&request, fds, MLACAT_INVALID_ARGUMENT, "O_RDWR");

    int huge = memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);
    if (huge >= 0) { /* a kernel without huge pages has none to refuse */
        request = client_request(&client);
        close(request.fds[0]);
        request.fds[0] = huge;
        fcntl(huge, F_ADD_SEALS, F_SEAL_SHRINK);
        assert_refused(&request, fds, MLACAT_INVALID_ARGUMENT, "huge pages");
    }
    client_memory_free(&client);
}

/* Memory of another kind, and more or fewer descriptors than the kind has: all of them are taken. */
static void test_device_import_refuses_other_kinds(void **state)
{
    (void)state;
    struct client_memory client = client_memory_new(PAGE, F_SEAL_SHRINK);
    int fds = open_fds();
    struct memory_request request = client_request(&client);
    request.kind = MEMORY_CUDA_VMM;
    request.chunks_nr = MEMORY_CHUNKS_MAX;
    for (int i = 1; i < MEMORY_CHUNKS_MAX; i++) {
        request.fds[i] = fcntl(client.fd, F_DUPFD_CLOEXEC, 0);
    }
    assert_refused(&request, fds, MLACAT_INVALID_ARGUMENT, "memfd");
    request = client_request(&client);
    close(request.fds[0]);
    request.kind = MEMORY_CUDA_IPC;
    request.chunks_nr = 0;
    assert_refused(&request, fds, MLACAT_INVALID_ARGUMENT, "memfd");
    request.kind = MEMORY_HOST;
    assert_refused(&request, fds, MLACAT_INVALID_ARGUMENT, "0 descriptors");
    request = client_request(&client);
    request.chunks_nr = 2;
    request.fds[1] = fcntl(client.fd, F_DUPFD_CLOEXEC, 0);
    assert_refused(&request, fds, MLACAT_INVALID_ARGUMENT, "2 descriptors");
    client_memory_free(&client);
}

/* The seal holds for the client: what was imported cannot be taken away again. */
static void test_device_memory_cannot_shrink_after_import(void **state)
{
    (void)state;
    struct imported memory = row_memory_new(2 * PAGE);
    assert_int_equal(ftruncate(memory.client.fd, 0), -1);
    assert_int_equal(errno, EPERM);
    row_memory_free(&memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ROW_TEST(test_device_open_names_the_device),
        ROW_TEST(test_device_import_tells_what_the_memory_is),
        ROW_TEST(test_device_import_checks_the_size),
        ROW_TEST(test_device_import_checks_the_seals),
        ROW_TEST(test_device_import_refuses_other_descriptors),
        ROW_TEST(test_device_import_refuses_other_kinds),
        ROW_TEST(test_device_memory_cannot_shrink_after_import),
    };
    return ROW_RUN_TESTS("device memory", tests);
}
