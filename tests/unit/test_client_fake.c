/* SPDX-License-Identifier: Apache-2.0 */
#include "test_client_fake.h"

#include <errno.h>
#include <mlacat.pb-c.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "test_client_rings.h"
#include "test_client_say.h"

#define PACKET_BYTES 65536

struct held {
    int connection;
    uint64_t call_id;
};

struct fake {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    char folder[64];
    char path[96];
    int listener;
    int bell; /* eventfd: look at the sockets again */
    bool stop;
    int connections[FAKE_CONNECTIONS]; /* -1: none */
    struct fake_mode mode;
    struct fake_seen seen;
    unsigned ignored;
    unsigned bells;
    unsigned heard; /* of these, by the thread */
    struct rings *rings;
    int exited; /* stands for the pidfd */
    uint32_t last_id;
    struct held held[FAKE_CALLS];
    unsigned held_nr;
};

/* ---------------------------------------------------------------------------------------------------- requests */

static struct say_status said(const struct fake *fake)
{
    const char *text = fake->mode.text != NULL ? fake->mode.text : "refused by the test";
    return (struct say_status){fake->mode.code, fake->mode.scope, text};
}

/* The memory that the request names must have come with it. */
static bool has_memory(const Mlacat__V1__Memory *memory, int passed)
{
    struct stat status;
    switch (memory->kind_case) {
    case MLACAT__V1__MEMORY__KIND_HOST:
        return passed >= 0 && fstat(passed, &status) == 0 && (uint64_t)status.st_size >= memory->host->size_bytes;
    case MLACAT__V1__MEMORY__KIND_CUDA_IPC:
        return passed < 0 && memory->cuda_ipc->handle.len == 64 && memory->cuda_ipc->buffer_id != 0;
    default:
        return passed >= 0 && memory->kind_case == MLACAT__V1__MEMORY__KIND_CUDA_VMM;
    }
}

static void register_buffer(struct fake *fake, int fd, const Mlacat__V1__Envelope *request, int passed)
{
    if (!has_memory(request->register_buffer->memory, passed)) {
        say_give_up("RegisterBuffer without the memory that it names");
    }
    struct say_status why = said(fake);
    switch (fake->mode.register_reply) {
    case FAKE_REGISTER_OTHER_NUMBER:
        say_registered(fd, request->request_id + 1000, ++fake->last_id);
        break;
    case FAKE_REGISTER_GARBAGE:
        say_bytes(fd, "\xff\xff\xff", 3, -1);
        break;
    case FAKE_REGISTER_END:
        say_answer(fd, 0, &why);
        break;
    default:
        say_registered(fd, request->request_id, ++fake->last_id);
    }
}

static void note_register(struct fake *fake)
{
    fake->seen.registers++;
    if (fake->mode.registering != NULL) {
        fake->mode.registering();
    }
}

static void submit(struct fake *fake, int fd, const Mlacat__V1__Submit *body)
{
    uint64_t ids[256];
    unsigned nr = (unsigned)body->n_calls;
    if (nr == 0 || nr > 256 || body->stream == NULL || body->stream->generation != SAY_STREAM_GENERATION ||
        fake->held_nr + nr > FAKE_CALLS) {
        say_give_up("Submit without calls or stream, or too many are held");
    }
    for (unsigned i = 0; i < nr; i++) {
        const Mlacat__V1__Call *call = body->calls[i];
        if (call->n_operands != 3 || call->operands[0]->where_case != MLACAT__V1__OPERAND__WHERE_BUFFER ||
            call->operands[0]->buffer->generation != SAY_BUFFER_GENERATION) {
            say_give_up("a call without operands");
        }
        ids[i] = call->call_id;
        if (call->wait_event != NULL) {
            fake->seen.waits++;
            fake->seen.last_waited = call->wait_event->generation == SAY_EVENT_GENERATION ? call->wait_event->id : 0;
        }
        if (fake->mode.hold) {
            fake->held[fake->held_nr++] = (struct held){fd, call->call_id};
        }
    }
    fake->seen.submits++;
    fake->seen.calls += nr;
    if (!fake->mode.hold) {
        struct say_status status = said(fake);
        say_completions(fd, ids, nr, &status);
    }
}

static void register_event(struct fake *fake, int fd, const Mlacat__V1__Envelope *request)
{
    const Mlacat__V1__RegisterEvent *body = request->register_event;
    if (fake->mode.old || body->handle.len != sizeof(fake->seen.last_handle)) {
        say_give_up("RegisterEvent to a daemon that does not know it, or without a handle");
    }
    fake->seen.events++;
    fake->seen.last_event = ++fake->last_id;
    memcpy(fake->seen.last_handle, body->handle.data, sizeof(fake->seen.last_handle));
    snprintf(fake->seen.last_device, sizeof(fake->seen.last_device), "%s", body->device_uuid);
    say_event(fd, request->request_id, fake->seen.last_event);
}

static bool refuse(struct fake *fake, int fd, uint64_t request_id, bool refused)
{
    if (refused) {
        struct say_status status = said(fake);
        say_answer(fd, request_id, &status);
    }
    return refused;
}

static void open_stream(struct fake *fake, int fd, uint64_t id, const Mlacat__V1__OpenStream *request)
{
    uint32_t calls = fake->mode.stream_calls != 0 ? fake->mode.stream_calls : 16;
    uint32_t stream = ++fake->last_id;
    struct say_ring ring;
    if (request->ring && (fake->rings == NULL || !rings_take(fake->rings, stream, &ring))) {
        say_answer(fd, id, &(struct say_status){MLACAT_RESOURCE_EXHAUSTED, MLACAT_SCOPE_CALL, "no ring is left"});
        return;
    }
    fake->seen.ring_opens += request->ring != 0;
    say_opened(fd, id, stream, calls, request->ring ? &ring : NULL);
}

static void close_stream(struct fake *fake, int fd, uint64_t id, const Mlacat__V1__CloseStream *request)
{
    fake->seen.closes++;
    if (fake->rings != NULL) {
        rings_put(fake->rings, request->stream->id);
    }
    say_answer(fd, id, &(struct say_status){0});
}

static void handle(struct fake *fake, int index, const Mlacat__V1__Envelope *request, int passed)
{
    int fd = fake->connections[index];
    uint64_t id = request->request_id;
    if (fake->mode.ignore && request->body_case != MLACAT__V1__ENVELOPE__BODY_HELLO) {
        fake->ignored++;
        return;
    }
    switch (request->body_case) {
    case MLACAT__V1__ENVELOPE__BODY_HELLO:
        fake->seen.hellos++;
        if (refuse(fake, fd, 0, fake->mode.refuse_hello)) {
            close(fd);
            fake->connections[index] = -1;
        } else {
            uint64_t features = fake->mode.old ? 0 : MLACAT__V1__FEATURE__FEATURE_EVENTS;
            features |= fake->mode.rings ? MLACAT__V1__FEATURE__FEATURE_RING : 0;
            say_welcome(fd, id, fake->exited, features, fake->mode.cuda);
        }
        break;
    case MLACAT__V1__ENVELOPE__BODY_REGISTER_BUFFER:
        note_register(fake);
        if (!refuse(fake, fd, id, fake->mode.refuse_register)) {
            register_buffer(fake, fd, request, passed);
        }
        break;
    case MLACAT__V1__ENVELOPE__BODY_REGISTER_EVENT:
        if (!refuse(fake, fd, id, fake->mode.refuse_event)) {
            register_event(fake, fd, request);
        }
        break;
    case MLACAT__V1__ENVELOPE__BODY_OPEN_STREAM:
        fake->seen.opens++;
        if (!refuse(fake, fd, id, fake->mode.refuse_open)) {
            open_stream(fake, fd, id, request->open_stream);
        }
        break;
    case MLACAT__V1__ENVELOPE__BODY_OPEN_RINGS:
        fake->seen.pages_opens++;
        if (!refuse(fake, fd, id, fake->mode.refuse_rings)) {
            rings_free(fake->rings);
            fake->rings = rings_new();
            say_rings(fd, id, rings_told(fake->rings));
        }
        break;
    case MLACAT__V1__ENVELOPE__BODY_SUBMIT:
        submit(fake, fd, request->submit);
        break;
    case MLACAT__V1__ENVELOPE__BODY_STATS_REQUEST:
        fake->seen.stats++;
        say_stats(fd, id, &fake->mode.memory);
        break;
    case MLACAT__V1__ENVELOPE__BODY_CLOSE_STREAM:
        close_stream(fake, fd, id, request->close_stream);
        break;
    default:
        fake->seen.unregisters += request->body_case == MLACAT__V1__ENVELOPE__BODY_UNREGISTER_BUFFER;
        fake->seen.events_gone += request->body_case == MLACAT__V1__ENVELOPE__BODY_UNREGISTER_EVENT;
        fake->seen.cancels += request->body_case == MLACAT__V1__ENVELOPE__BODY_CANCEL;
        say_answer(fd, id, &(struct say_status){0});
    }
}

static void read_connection(struct fake *fake, int index)
{
    static uint8_t bytes[PACKET_BYTES];
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {.iov_base = bytes, .iov_len = sizeof(bytes)};
    struct msghdr header = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t got = recvmsg(fake->connections[index], &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == ECONNRESET)) {
        return;
    }
    if (got <= 0) {
        close(fake->connections[index]);
        fake->connections[index] = -1;
        return;
    }
    int passed = -1;
    struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
    if (rights != NULL) {
        memcpy(&passed, CMSG_DATA(rights), sizeof(int));
    }
    Mlacat__V1__Envelope *request = mlacat__v1__envelope__unpack(NULL, (size_t)got, bytes);
    if (request == NULL) {
        say_give_up("a packet does not parse");
    }
    handle(fake, index, request, passed);
    mlacat__v1__envelope__free_unpacked(request, NULL);
    if (passed >= 0) {
        close(passed);
    }
}

static void accept_connection(struct fake *fake)
{
    int fd = accept4(fake->listener, NULL, NULL, SOCK_CLOEXEC);
    for (int i = 0; fd >= 0 && i < FAKE_CONNECTIONS; i++) {
        if (fake->connections[i] < 0) {
            fake->connections[i] = fd;
            return;
        }
    }
    say_give_up("accept");
}

static void *run(void *user)
{
    struct fake *fake = user;
    struct pollfd items[FAKE_CONNECTIONS + 2];
    pthread_mutex_lock(&fake->lock);
    while (!fake->stop) {
        for (int i = 0; i < FAKE_CONNECTIONS; i++) {
            items[i] = (struct pollfd){.fd = fake->mode.deaf ? -1 : fake->connections[i], .events = POLLIN};
        }
        items[FAKE_CONNECTIONS] = (struct pollfd){.fd = fake->listener, .events = POLLIN};
        items[FAKE_CONNECTIONS + 1] = (struct pollfd){.fd = fake->bell, .events = POLLIN};
        pthread_mutex_unlock(&fake->lock);
        poll(items, FAKE_CONNECTIONS + 2, -1);
        pthread_mutex_lock(&fake->lock);
        uint64_t count;
        if (items[FAKE_CONNECTIONS + 1].revents != 0 && read(fake->bell, &count, sizeof(count)) > 0) {
            fake->heard = fake->bells;
            pthread_cond_broadcast(&fake->changed);
            continue; /* the sockets may be others now */
        }
        for (int i = 0; i < FAKE_CONNECTIONS; i++) {
            if (items[i].revents != 0 && fake->connections[i] >= 0) {
                read_connection(fake, i);
            }
        }
        if (items[FAKE_CONNECTIONS].revents != 0 && fake->listener >= 0) {
            accept_connection(fake);
        }
        pthread_cond_broadcast(&fake->changed);
    }
    pthread_mutex_unlock(&fake->lock);
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------- control */

static void ring(struct fake *fake)
{
    fake->bells++;
    const uint64_t one = 1;
    if (write(fake->bell, &one, sizeof(one)) < 0) {
        say_give_up("eventfd");
    }
}

static void start_listening(struct fake *fake)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, fake->path, strlen(fake->path) + 1);
    fake->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (bind(fake->listener, (const struct sockaddr *)&address, sizeof(address)) < 0 || listen(fake->listener, 8) < 0) {
        say_give_up(fake->path);
    }
}

static void stop_listening(struct fake *fake)
{
    close(fake->listener);
    fake->listener = -1;
    unlink(fake->path);
}

struct fake *fake_start(void)
{
    struct fake *fake = calloc(1, sizeof(*fake));
    memcpy(fake->folder, "/tmp/mlacat-test-XXXXXX", sizeof("/tmp/mlacat-test-XXXXXX"));
    if (mkdtemp(fake->folder) == NULL) {
        say_give_up("mkdtemp");
    }
    snprintf(fake->path, sizeof(fake->path), "%s/s", fake->folder);
    pthread_mutex_init(&fake->lock, NULL);
    pthread_cond_init(&fake->changed, NULL);
    memset(fake->connections, 0xff, sizeof(fake->connections));
    fake->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    fake->exited = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    start_listening(fake);
    if (pthread_create(&fake->thread, NULL, run, fake) != 0) {
        say_give_up("pthread_create");
    }
    return fake;
}

void fake_stop(struct fake *fake)
{
    pthread_mutex_lock(&fake->lock);
    fake->stop = true;
    ring(fake);
    pthread_mutex_unlock(&fake->lock);
    pthread_join(fake->thread, NULL);
    for (int i = 0; i < FAKE_CONNECTIONS; i++) {
        if (fake->connections[i] >= 0) {
            close(fake->connections[i]);
        }
    }
    if (fake->listener >= 0) {
        stop_listening(fake);
    }
    rmdir(fake->folder);
    rings_free(fake->rings);
    close(fake->exited);
    close(fake->bell);
    free(fake);
}

const char *fake_path(const struct fake *fake)
{
    return fake->path;
}

void fake_set(struct fake *fake, struct fake_mode mode)
{
    pthread_mutex_lock(&fake->lock);
    fake->mode = mode;
    ring(fake);
    pthread_mutex_unlock(&fake->lock);
}

struct fake_seen fake_seen(struct fake *fake)
{
    pthread_mutex_lock(&fake->lock);
    struct fake_seen seen = fake->seen;
    pthread_mutex_unlock(&fake->lock);
    return seen;
}

static void await(struct fake *fake, const unsigned *count, unsigned wanted)
{
    pthread_mutex_lock(&fake->lock);
    while (*count < wanted) {
        pthread_cond_wait(&fake->changed, &fake->lock);
    }
    pthread_mutex_unlock(&fake->lock);
}

void fake_sync(struct fake *fake)
{
    pthread_mutex_lock(&fake->lock);
    unsigned bells = fake->bells;
    pthread_mutex_unlock(&fake->lock);
    await(fake, &fake->heard, bells);
}

void fake_await_calls(struct fake *fake, unsigned calls)
{
    await(fake, &fake->seen.calls, calls);
}

void fake_await_unregisters(struct fake *fake, unsigned unregisters)
{
    await(fake, &fake->seen.unregisters, unregisters);
}

void fake_await_ignored(struct fake *fake, unsigned requests)
{
    await(fake, &fake->ignored, requests);
}

void fake_release(struct fake *fake, unsigned nr, bool newest_first)
{
    pthread_mutex_lock(&fake->lock);
    while (nr-- > 0 && fake->held_nr > 0) {
        unsigned at = newest_first ? fake->held_nr - 1 : 0;
        struct held call = fake->held[at];
        memmove(fake->held + at, fake->held + at + 1, (--fake->held_nr - at) * sizeof(call));
        struct say_status status = said(fake);
        say_completions(call.connection, &call.call_id, 1, &status);
    }
    pthread_mutex_unlock(&fake->lock);
}

void fake_die(struct fake *fake, const char *last_words)
{
    pthread_mutex_lock(&fake->lock);
    fake->held_nr = 0;
    for (int i = 0; i < FAKE_CONNECTIONS; i++) {
        if (fake->connections[i] >= 0) {
            if (last_words != NULL) {
                say_answer(fake->connections[i], 0,
                           &(struct say_status){MLACAT_RESOURCE_EXHAUSTED, MLACAT_SCOPE_SESSION, last_words});
            }
            /* Our thread's poll may still hold the socket: closing alone would take effect later. But a daemon that
             * dies with requests unread is to be seen as that. */
            if (!fake->mode.deaf) {
                shutdown(fake->connections[i], SHUT_RDWR);
            }
            close(fake->connections[i]);
            fake->connections[i] = -1;
        }
    }
    rings_free(fake->rings);
    fake->rings = NULL;
    ring(fake);
    pthread_mutex_unlock(&fake->lock);
}

struct rings *fake_rings(struct fake *fake)
{
    pthread_mutex_lock(&fake->lock);
    struct rings *rings = fake->rings;
    pthread_mutex_unlock(&fake->lock);
    return rings;
}

void fake_exit(struct fake *fake)
{
    const uint64_t one = 1;
    if (write(fake->exited, &one, sizeof(one)) < 0) {
        say_give_up("eventfd");
    }
}

void fake_hide(struct fake *fake)
{
    pthread_mutex_lock(&fake->lock);
    stop_listening(fake);
    ring(fake);
    pthread_mutex_unlock(&fake->lock);
}

void fake_show(struct fake *fake)
{
    pthread_mutex_lock(&fake->lock);
    start_listening(fake);
    ring(fake);
    pthread_mutex_unlock(&fake->lock);
}

void fake_send_raw(struct fake *fake, const void *bytes, size_t size, int fd)
{
    pthread_mutex_lock(&fake->lock);
    for (int i = 0; i < FAKE_CONNECTIONS; i++) {
        if (fake->connections[i] >= 0) {
            say_bytes(fake->connections[i], bytes, size, fd);
        }
    }
    pthread_mutex_unlock(&fake->lock);
}

struct mlacat_client *fake_client(struct fake *fake, enum mlacat_dispatch dispatch)
{
    struct mlacat_connect_options options = {.size = sizeof(options),
                                             .socket = fake->path,
                                             .name = "test",
                                             .dispatch = dispatch,
                                             .connect_timeout_ms = FAKE_PATIENCE_MS,
                                             .reconnect_timeout_ms = FAKE_PATIENCE_MS};
    struct mlacat_client *client;
    if (mlacat_connect(&options, &client) != MLACAT_OK) {
        say_give_up(mlacat_error_message());
    }
    return client;
}

struct mlacat_call fake_call(struct mlacat_buffer *buffer)
{
    struct mlacat_call call = {.size = sizeof(call), .op = MLACAT_OP_CONCAT_MLA_K, .dtype = MLACAT_DTYPE_BF16};
    for (int i = 0; i < 3; i++) {
        call.operand[i] = mlacat_tensor_contiguous(buffer, 64u * (unsigned)i, 1, i == 2 ? 1 : 2, i == 0 ? 6 : 3);
    }
    return call;
}
