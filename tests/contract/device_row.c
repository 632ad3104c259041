/* SPDX-License-Identifier: Apache-2.0 */
#include "device_row.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "closer.h"
#include "device_fault.h"

#define CLOSE_MS 10000

static const struct {
    const char *name;
    const struct device_ops *ops;
} rows[] = {
    {"host", &device_host_ops},
    {"fault over host", &device_fault_ops},
};

int row_setup(void **state)
{
    (void)state;
    struct error err;
    device_fault_over(&device_host_ops);
    if (row.ops->open(NULL, &row.device, &row.info, &err) != DEVICE_OK) {
        print_error("%s: %s\n", row.name, err.message);
        return -1;
    }
    return row.ops->stream_open(row.device, NULL, &row.stream, &err) == MLACAT_OK ? 0 : -1;
}

int row_teardown(void **state)
{
    (void)state;
    row.ops->stream_close(row.stream);
    row.ops->close(row.device);
    return 0;
}

struct client_memory client_memory_new(size_t size, int seals)
{
    struct client_memory client = {.fd = memfd_create("contract", MFD_CLOEXEC | MFD_ALLOW_SEALING), .size = size};
    assert_true(client.fd >= 0);
    assert_int_equal(ftruncate(client.fd, (off_t)size), 0);
    client.bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, client.fd, 0);
    assert_ptr_not_equal(client.bytes, MAP_FAILED);
    if (seals & F_SEAL_WRITE) { /* refused by the kernel while somebody can write */
        munmap(client.bytes, size);
        client.bytes = NULL;
    }
    assert_int_equal(fcntl(client.fd, F_ADD_SEALS, seals), 0);
    return client;
}

void client_memory_free(struct client_memory *client)
{
    if (client->bytes) {
        munmap(client->bytes, client->size);
    }
    close(client->fd);
}

struct memory_request client_request(const struct client_memory *client)
{
    struct memory_request request;
    memset(&request, 0, sizeof(request));
    request.kind = MEMORY_HOST;
    request.size_bytes = client->size;
    request.chunks_nr = 1;
    request.fds[0] = fcntl(client->fd, F_DUPFD_CLOEXEC, 0);
    request.limit_bytes = UINT64_MAX;
    assert_true(request.fds[0] >= 0);
    return request;
}

int open_fds(void)
{
    int nr = 0;
    assert_true(closer_flush(CLOSE_MS)); /* a stranger's descriptor is closed on another thread */
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    while (readdir(dir)) {
        nr++;
    }
    closedir(dir);
    return nr;
}

int row_run_tests(const char *group, const struct CMUnitTest *tests, size_t nr)
{
    int failed = 0;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        char name[64];
        row.name = rows[i].name;
        row.ops = rows[i].ops;
        row.works_in_poll = true;
        snprintf(name, sizeof(name), "%s (%s)", group, row.name);
        failed += _cmocka_run_group_tests(name, tests, nr, NULL, NULL); /* what cmocka_run_group_tests_name calls */
    }
    return failed;
}
