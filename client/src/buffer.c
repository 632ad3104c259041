/* SPDX-License-Identifier: Apache-2.0 */
#include "buffer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda_export.h"
#include "memory_watch.h"
#include "reconnect.h"
#include "request.h"
#include "ring.h"

void buffer_discard(struct mlacat_buffer *buffer)
{
    if (buffer->data != NULL) {
        munmap(buffer->data, buffer->bytes);
    }
    for (uint32_t i = 0; i < buffer->fds.nr; i++) {
        close(buffer->fds.fd[i]);
    }
    free(buffer->device_memory);
    free(buffer);
}

void buffer_unregister(struct mlacat_buffer *buffer)
{
    struct mlacat_client *client = buffer->client;
    if (client->fd < 0 || !buffer->at_daemon) {
        return;
    }
    buffer->at_daemon = false;
    struct error ignored;
    message request = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__UnregisterBuffer body = MLACAT__V1__UNREGISTER_BUFFER__INIT;
    Mlacat__V1__BufferRef ref = MLACAT__V1__BUFFER_REF__INIT;
    request.body_case = MLACAT__V1__ENVELOPE__BODY_UNREGISTER_BUFFER;
    request.unregister_buffer = &body;
    body.buffer = &ref;
    ref.id = buffer->ref.id;
    ref.generation = buffer->ref.generation;
    /* It fails only together with the connection, and then the daemon has let go of the buffer anyway. */
    (void)request_make(client, &request, NULL, REQUEST_THIS_CONNECTION, MLACAT__V1__ENVELOPE__BODY_ANSWER, NULL,
                       &ignored);
}

static enum mlacat_status prepare(struct mlacat_client *client, size_t bytes, struct mlacat_buffer **out,
                                  struct mlacat_buffer **made)
{
    enum mlacat_status status = client_check(client);
    if (status != MLACAT_OK) {
        return status;
    }
    if (out == NULL) {
        return error_fail(MLACAT_INVALID_ARGUMENT, "buffer is NULL; give the address of a pointer");
    }
    *out = NULL;
    if (bytes == 0 || bytes > PTRDIFF_MAX) {
        return error_fail(MLACAT_INVALID_ARGUMENT, "a buffer of %zu bytes is asked for; 1 to %td are possible", bytes,
                          PTRDIFF_MAX);
    }
    struct mlacat_buffer *buffer = calloc(1, sizeof(*buffer));
    if (buffer == NULL) {
        return error_fail(MLACAT_RESOURCE_EXHAUSTED, "no memory for the handle of a buffer");
    }
    buffer->client = client;
    buffer->bytes = bytes;
    *made = buffer;
    return MLACAT_OK;
}

static enum mlacat_status choose_device(struct mlacat_buffer *buffer, const char *wanted)
{
    const struct mlacat_device_info *device;
    enum mlacat_status status = client_pick_device(buffer->client, wanted, &device);
    if (status == MLACAT_OK && buffer->device_memory == NULL && strcmp(device->kind, "host") != 0) {
        status = error_fail(MLACAT_UNIMPLEMENTED,
                            "device %s is of kind %s, which takes memory of its own: allocate it with CUDA and give "
                            "it to mlacat_buffer_register_ptr",
                            device->uuid, device->kind);
    }
    if (status == MLACAT_OK) {
        memcpy(buffer->device, device->uuid, sizeof(buffer->device));
    }
    return status;
}

/* Tells the daemon, and puts the buffer on its client's list. Takes it: on an error it is gone. */
static enum mlacat_status announce(struct mlacat_buffer *buffer, const char *wanted, struct mlacat_buffer **out)
{
    struct mlacat_client *client = buffer->client;
    struct message_register request;
    message *reply;
    struct error err;
    pthread_mutex_lock(&client->lock);
    enum mlacat_status status = choose_device(buffer, wanted);
    if (status == MLACAT_OK && buffer->device_memory != NULL && memory_watch_start(client, &err) != MLACAT_OK) {
        status = error_raise(&err);
    }
    if (status == MLACAT_OK) {
        message_register(&request, buffer);
        status = request_make(client, &request.envelope, &buffer->fds, REQUEST_NEW_WORK,
                              MLACAT__V1__ENVELOPE__BODY_BUFFER_REGISTERED, &reply, &err);
        if (status != MLACAT_OK) {
            error_raise(&err);
        }
    }
    if (status == MLACAT_OK) {
        buffer->ref = message_buffer_ref(reply->buffer_registered->buffer);
        buffer->at_daemon = true;
        message_free(reply);
        buffer->serial = ++client->last_serial;
        TAILQ_INSERT_TAIL(&client->buffers, buffer, link);
        memory_watch_added(client);
        *out = buffer;
    }
    pthread_mutex_unlock(&client->lock);
    if (status != MLACAT_OK) {
        buffer_discard(buffer);
    }
    return status;
}

/* A file in memory that can neither shrink under the daemon nor grow past what the daemon counts. */
static enum mlacat_status make_memory(struct mlacat_buffer *buffer)
{
    int fd = memfd_create("mlacat", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        return error_fail(MLACAT_RESOURCE_EXHAUSTED, "cannot make shared memory: %s%s", strerror(errno),
                          errno == EMFILE ? "; release buffers or raise the limit of open files (ulimit -n)" : "");
    }
    buffer->fds.fd[buffer->fds.nr++] = fd;
    if (ftruncate(fd, (off_t)buffer->bytes) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        return error_fail(MLACAT_RESOURCE_EXHAUSTED, "cannot make shared memory of %zu bytes: %s", buffer->bytes,
                          strerror(errno));
    }
    void *data = mmap(NULL, buffer->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) {
        return error_fail(MLACAT_RESOURCE_EXHAUSTED, "cannot map %zu bytes: %s; ask for less or release buffers",
                          buffer->bytes, strerror(errno));
    }
    buffer->data = data;
    return MLACAT_OK;
}

enum mlacat_status mlacat_buffer_alloc(struct mlacat_client *client, const char *device, size_t bytes,
                                       struct mlacat_buffer **buffer)
{
    struct mlacat_buffer *made = NULL;
    enum mlacat_status status = prepare(client, bytes, buffer, &made);
    if (status != MLACAT_OK) {
        return status;
    }
    status = make_memory(made);
    if (status != MLACAT_OK) {
        buffer_discard(made);
        return status;
    }
    return announce(made, device, buffer);
}

enum mlacat_status mlacat_buffer_register_fd(struct mlacat_client *client, const char *device, int fd, size_t bytes,
                                             struct mlacat_buffer **buffer)
{
    struct mlacat_buffer *made = NULL;
    enum mlacat_status status = prepare(client, bytes, buffer, &made);
    if (status != MLACAT_OK) {
        return status;
    }
    int kept = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (kept < 0) {
        int error = errno;
        buffer_discard(made);
        return error == EBADF
                   ? error_fail(MLACAT_INVALID_ARGUMENT, "%d is not an open descriptor; give a sealed memfd", fd)
                   : error_fail(MLACAT_RESOURCE_EXHAUSTED, "cannot duplicate descriptor %d: %s", fd, strerror(error));
    }
    made->fds.fd[made->fds.nr++] = kept;
    return announce(made, device, buffer);
}

enum mlacat_status mlacat_buffer_register_ptr(struct mlacat_client *client, const void *pointer, size_t bytes,
                                              struct mlacat_buffer **buffer)
{
    struct mlacat_buffer *made = NULL;
    char uuid[CLIENT_UUID_BYTES];
    enum mlacat_status status = prepare(client, bytes, buffer, &made);
    if (status != MLACAT_OK) {
        return status;
    }
    made->device_memory = calloc(1, sizeof(*made->device_memory));
    if (made->device_memory == NULL) {
        status = error_fail(MLACAT_RESOURCE_EXHAUSTED, "no memory for the handle of a buffer");
    } else {
        status = cuda_export(pointer, bytes, made->device_memory, &made->fds, uuid);
    }
    if (status != MLACAT_OK) {
        buffer_discard(made);
        return status;
    }
    return announce(made, uuid, buffer);
}

void *mlacat_buffer_data(const struct mlacat_buffer *buffer)
{
    return buffer == NULL ? NULL : buffer->data;
}

size_t mlacat_buffer_bytes(const struct mlacat_buffer *buffer)
{
    return buffer == NULL ? 0 : buffer->bytes;
}

const char *mlacat_buffer_device(const struct mlacat_buffer *buffer)
{
    return buffer == NULL ? NULL : buffer->device;
}

void mlacat_buffer_release(struct mlacat_buffer *buffer)
{
    if (buffer == NULL || client_is_forked(buffer->client)) {
        return;
    }
    struct mlacat_client *client = buffer->client;
    pthread_mutex_lock(&client->lock);
    ring_await_taken(client); /* calls in flight go on with the buffer, but not those that the daemon has not seen */
    reconnect_settle(client);
    /* Off the list first: should the connection end meanwhile, the next one must not register it again. */
    TAILQ_REMOVE(&client->buffers, buffer, link);
    buffer_unregister(buffer);
    pthread_mutex_unlock(&client->lock);
    buffer_discard(buffer);
}
