/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_scene.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>
#include <sys/mman.h>

struct device device;
struct device_memory *memory;
unsigned char *mapping;
struct device_words words;
struct device_stream *stream;
struct error err;

struct device_pages *register_page(unsigned char *page)
{
    struct device_pages *pages;
    assert_int_equal(cuda_pages_register(&device.pages, page, PAGE, &pages, &err), DEVICE_OK);
    return pages;
}

static void make_words(void)
{
    mapping = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(mapping, MAP_FAILED);
    words = (struct device_words){.fence = (uint64_t *)(void *)(mapping + 384),
                                  .fence_pages = register_page(mapping),
                                  .done = (uint64_t *)(void *)(mapping + PAGE + 512),
                                  .ready = (uint64_t *)(void *)(mapping + PAGE + 1024),
                                  .client_pages = register_page(mapping + PAGE)};
}

void scene_open(bool with_words)
{
    struct memory_request request;
    struct memory_info info;
    driver_reset();
    driver_device_init(&device);
    memset(&request, 0, sizeof(request));
    struct cuda_ipc_handle handle = driver_allocate(1, 1024 * MIB);
    request.kind = MEMORY_CUDA_IPC;
    request.size_bytes = request.allocation_bytes = request.limit_bytes = 1024 * MIB;
    memcpy(request.handle, handle.bytes, sizeof(request.handle));
    assert_int_equal(cuda_memory_import(&device, &request, &memory, &info, &err), MLACAT_OK);
    mapping = NULL;
    if (with_words) {
        make_words();
    }
    assert_int_equal(cuda_stream_open(&device, with_words ? &words : NULL, &stream, &err), MLACAT_OK);
    driver.total = 0;
}

void scene_close(void)
{
    cuda_stream_close(stream);
    if (mapping) {
        cuda_pages_release(&device.pages, words.fence_pages);
        cuda_pages_release(&device.pages, words.client_pages);
        munmap(mapping, 2 * PAGE);
    }
    assert_int_equal(atomic_load(&memory->segment->pins), 0);
    cuda_memory_release(&device, memory);
    driver_device_fini(&device);
}

struct device_call scene_call(uint64_t rows, uint64_t sequence)
{
    struct device_call call = {
        .cookie = (void *)(uintptr_t)sequence, .memory = {memory, memory, memory}, .sequence = sequence};
    call.plan = (struct op_plan){.op = 1,
                                 .dim0 = rows,
                                 .dim1 = 1,
                                 .width_bytes = {192, 128, 64},
                                 .stride_bytes = {{192, 0}, {128, 0}, {64, 0}},
                                 .offset_bytes = {0, 512 * MIB, 768 * MIB},
                                 .copy = {true, true, true},
                                 .bytes = rows * 384};
    return call;
}

enum device_answer scene_submit(struct device_stream *to, const struct device_call *call)
{
    uint32_t nr = 1;
    return cuda_stream_submit(to, call, &nr, &err);
}
