/* SPDX-License-Identifier: Apache-2.0 */
#include "ready_word.h"

#include <stdlib.h>

#include "cuda_current.h"
#include "cuda_export.h"
#include "mlacat_abi.h"

/* What the driver gives by itself, so that a handle of it is a handle of nothing else. */
#define BLOCK_BYTES (UINT64_C(2) << 20)
#define BLOCK_WORDS (BLOCK_BYTES / MLACAT_ABI_LINE)

struct block {
    SLIST_ENTRY(block) link;
    void *context;
    struct cuda_piece memory;
    uint64_t used; /* words; the rest is fixed */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of what follows; not held while a daemon is waited for */
static SLIST_HEAD(, block) blocks = SLIST_HEAD_INITIALIZER(blocks);

/* ---------------------------------------------------------------------------------------------------- blocks */

/* A context may end before the process, and another one take its place. */
static bool is_alive(const struct block *block, const struct cuda_driver *cuda)
{
    const struct cuda_asking asking = {.cuda = cuda}; /* the submit has begun one */
    return cuda_asking_memory(&asking, &block->memory, 1, NULL) == CUDA_MEMORY_SAME;
}

static struct block *new_block(const struct cuda_driver *cuda, void *context)
{
    unsigned long long address = 0;
    unsigned long long buffer_id = 0;
    struct block *block = calloc(1, sizeof(*block));
    if (block == NULL || cuda->cuMemAlloc(&address, BLOCK_BYTES) != CUDA_RESULT_OK) {
        free(block);
        return NULL;
    }
    if (cuda->cuPointerGetAttribute(&buffer_id, CUDA_POINTER_BUFFER_ID, address) != CUDA_RESULT_OK) {
        cuda->cuMemFree(address);
        free(block);
        return NULL;
    }
    block->memory = (struct cuda_piece){address, buffer_id};
    block->context = context;
    SLIST_INSERT_HEAD(&blocks, block, link);
    return block;
}

/* One of the context, which is current, with a word left; NULL: no memory. */
static struct block *find_block(const struct cuda_driver *cuda, void *context)
{
    struct block *block;
    pthread_mutex_lock(&lock);
    SLIST_FOREACH(block, &blocks, link)
    {
        if (block->context == context && block->used < BLOCK_WORDS && is_alive(block, cuda)) {
            break;
        }
    }
    if (block == NULL) {
        block = new_block(cuda, context);
    }
    pthread_mutex_unlock(&lock);
    return block;
}

/* ---------------------------------------------------------------------------------------------------- buffers */

/* With the client's lock. */
static struct mlacat_buffer *find_buffer(const struct mlacat_client *client, const struct block *block)
{
    struct mlacat_buffer *buffer;
    TAILQ_FOREACH(buffer, &client->buffers, link)
    {
        if (buffer->ready_words == block->memory.buffer_id) {
            break;
        }
    }
    return buffer;
}

/* The client's buffer of the block; NULL: the daemon takes none. One thread at a time registers any. */
static struct mlacat_buffer *register_block(struct mlacat_client *client, const struct block *block)
{
    pthread_mutex_lock(&client->lock);
    while (client->registering_words) {
        pthread_cond_wait(&client->changed, &client->lock);
    }
    struct mlacat_buffer *buffer = find_buffer(client, block);
    if (buffer == NULL) {
        struct error before = error_raised();
        client->registering_words = true;
        pthread_mutex_unlock(&client->lock);
        mlacat_buffer_register_ptr(client, (const void *)(uintptr_t)block->memory.address, BLOCK_BYTES, &buffer);
        error_raise(&before);
        pthread_mutex_lock(&client->lock);
        client->registering_words = false;
        pthread_cond_broadcast(&client->changed);
        if (buffer != NULL) {
            buffer->ready_words = block->memory.buffer_id;
        }
    }
    pthread_mutex_unlock(&client->lock);
    return buffer;
}

/* ---------------------------------------------------------------------------------------------------- words */

static struct ready_word take(struct mlacat_client *client, const struct cuda_driver *cuda, void *context)
{
    struct ready_word word = {.buffer = NULL};
    struct block *block = find_block(cuda, context);
    struct mlacat_buffer *buffer = block != NULL ? register_block(client, block) : NULL;
    pthread_mutex_lock(&lock);
    if (buffer != NULL && block->used < BLOCK_WORDS) {
        word.buffer = buffer;
        word.offset_bytes = block->used++ * MLACAT_ABI_LINE;
        word.address = block->memory.address + word.offset_bytes;
    }
    pthread_mutex_unlock(&lock);
    return word;
}

struct ready_word ready_word_take(struct mlacat_stream *stream, const struct cuda_driver *cuda, void *cu_stream)
{
    struct ready_word word = {.buffer = NULL};
    void *context = NULL;
    if (cuda->cuStreamGetCtx(cu_stream, &context) != CUDA_RESULT_OK ||
        cuda->cuCtxPushCurrent(context) != CUDA_RESULT_OK) {
        return word; /* the submit that asks for it will say so */
    }
    if (cuda_current_is(cuda, __atomic_load_n(&stream->cuda_device, __ATOMIC_RELAXED))) {
        word = take(stream->client, cuda, context);
    }
    void *popped;
    cuda->cuCtxPopCurrent(&popped);
    return word;
}

bool ready_word_usable(const struct ready_word *word)
{
    return word->buffer != NULL && !word->buffer->freed && word->buffer->broken.code == MLACAT_OK;
}
