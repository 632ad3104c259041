/* SPDX-License-Identifier: Apache-2.0 */
#include "test_client_say.h"

#include <errno.h>
#include <mlacat.pb-c.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "mlacat_abi.h"

#define PACKET_BYTES 65536

void say_give_up(const char *what)
{
    fprintf(stderr, "fake daemon: %s: %s\n", what, strerror(errno));
    abort();
}

/* Blocks as long as the client does not read. Nobody there is no error: the client may be gone. */
static void send_bytes(int fd, const void *bytes, size_t size, const int *passed, unsigned passed_nr)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = {0};
    struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = size};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    if (passed_nr > 0) {
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(passed_nr * sizeof(int));
        struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(passed_nr * sizeof(int));
        memcpy(CMSG_DATA(rights), passed, passed_nr * sizeof(int));
    }
    if (sendmsg(fd, &header, MSG_NOSIGNAL) < 0 && errno != EPIPE && errno != ECONNRESET && errno != EBADF) {
        say_give_up("sendmsg");
    }
}

void say_bytes(int fd, const void *bytes, size_t size, int passed)
{
    send_bytes(fd, bytes, size, &passed, passed >= 0);
}

static void send_passing(int fd, Mlacat__V1__Envelope *envelope, const int *passed, unsigned passed_nr)
{
    uint8_t bytes[PACKET_BYTES];
    size_t size = mlacat__v1__envelope__get_packed_size(envelope);
    if (size > sizeof(bytes)) {
        say_give_up("the packet is too long");
    }
    mlacat__v1__envelope__pack(envelope, bytes);
    send_bytes(fd, bytes, size, passed, passed_nr);
}

static void send_message(int fd, Mlacat__V1__Envelope *envelope, int passed)
{
    send_passing(fd, envelope, &passed, passed >= 0);
}

void say_answer(int fd, uint64_t request_id, const struct say_status *said)
{
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__Answer body = MLACAT__V1__ANSWER__INIT;
    Mlacat__V1__Status status = MLACAT__V1__STATUS__INIT;
    envelope.request_id = request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_ANSWER;
    envelope.answer = &body;
    if (said->code != MLACAT_OK) {
        body.status = &status;
        status.code = said->code;
        status.scope = said->scope;
        status.message = (char *)(uintptr_t)said->text;
    }
    send_message(fd, &envelope, -1);
}

void say_welcome(int fd, uint64_t request_id, int pidfd, uint64_t features, bool cuda)
{
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__Welcome body = MLACAT__V1__WELCOME__INIT;
    Mlacat__V1__Limits limits = MLACAT__V1__LIMITS__INIT;
    Mlacat__V1__Device broken = MLACAT__V1__DEVICE__INIT;
    Mlacat__V1__Device host = MLACAT__V1__DEVICE__INIT;
    Mlacat__V1__Device *devices[] = {&broken, &host};
    uint8_t boot_id[16] = {1, 2, 3};
    envelope.request_id = request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_WELCOME;
    envelope.welcome = &body;
    body.protocol_version = 1;
    body.features = features;
    body.boot_id = (ProtobufCBinaryData){sizeof(boot_id), boot_id};
    body.server_version = (char *)(uintptr_t) "fake 1";
    body.server_pid = 77;
    body.limits = &limits;
    body.devices = devices;
    body.n_devices = 2;
    body.has_pidfd = true;
    limits.streams = 4;
    limits.buffers = 100;
    limits.mapped_bytes = UINT64_C(1) << 40;
    limits.stream_calls = 16;
    limits.calls = 64;
    broken.uuid = (char *)(uintptr_t) "GPU-1";
    broken.kind = (char *)(uintptr_t) "cuda";
    broken.reason = (char *)(uintptr_t) "not there";
    host.uuid = host.kind = (char *)(uintptr_t) "host";
    host.available = true;
    host.workers = 2;
    if (cuda) {
        broken.available = true;
        broken.reason = (char *)(uintptr_t) "";
    }
    send_message(fd, &envelope, pidfd);
}

void say_registered(int fd, uint64_t request_id, uint32_t buffer)
{
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__BufferRegistered body = MLACAT__V1__BUFFER_REGISTERED__INIT;
    Mlacat__V1__BufferRef ref = MLACAT__V1__BUFFER_REF__INIT;
    envelope.request_id = request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_BUFFER_REGISTERED;
    envelope.buffer_registered = &body;
    body.buffer = &ref;
    ref.id = buffer;
    ref.generation = SAY_BUFFER_GENERATION;
    send_message(fd, &envelope, -1);
}

void say_event(int fd, uint64_t request_id, uint32_t event)
{
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__EventRegistered body = MLACAT__V1__EVENT_REGISTERED__INIT;
    Mlacat__V1__EventRef ref = MLACAT__V1__EVENT_REF__INIT;
    envelope.request_id = request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_EVENT_REGISTERED;
    envelope.event_registered = &body;
    body.event = &ref;
    ref.id = event;
    ref.generation = SAY_EVENT_GENERATION;
    send_message(fd, &envelope, -1);
}

void say_opened(int fd, uint64_t request_id, uint32_t stream, uint32_t calls, const struct say_ring *ring)
{
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__StreamOpened body = MLACAT__V1__STREAM_OPENED__INIT;
    Mlacat__V1__StreamRef ref = MLACAT__V1__STREAM_REF__INIT;
    envelope.request_id = request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_STREAM_OPENED;
    envelope.stream_opened = &body;
    body.stream = &ref;
    body.calls = calls;
    ref.id = stream;
    ref.generation = SAY_STREAM_GENERATION;
    body.has_ring = ring != NULL;
    body.ring = ring != NULL ? ring->index : 0;
    body.sequence = ring != NULL ? ring->sequence : 0;
    send_message(fd, &envelope, ring != NULL ? ring->doorbell : -1);
}

void say_rings(int fd, uint64_t request_id, const struct say_rings *rings)
{
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__RingsOpened body = MLACAT__V1__RINGS_OPENED__INIT;
    envelope.request_id = request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_RINGS_OPENED;
    envelope.rings_opened = &body;
    body.rings = rings->rings;
    body.entries = rings->entries;
    body.client_bytes = rings->client_bytes;
    body.daemon_bytes = rings->daemon_bytes;
    body.client_stride = sizeof(struct mlacat_ring_client);
    body.daemon_stride = sizeof(struct mlacat_ring_daemon);
    body.submissions_offset = rings->submissions_offset;
    body.completions_offset = rings->completions_offset;
    body.messages_offset = rings->messages_offset;
    send_passing(fd, &envelope, rings->fds, 2);
}

void say_stats(int fd, uint64_t request_id, const struct say_memory *memory)
{
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__Stats body = MLACAT__V1__STATS__INIT;
    Mlacat__V1__StatusCount strange = MLACAT__V1__STATUS_COUNT__INIT;
    Mlacat__V1__StatusCount *outcomes[] = {&strange};
    Mlacat__V1__OpStats op = MLACAT__V1__OP_STATS__INIT;
    Mlacat__V1__OpStats *ops[] = {&op};
    Mlacat__V1__ClientStats one = MLACAT__V1__CLIENT_STATS__INIT;
    Mlacat__V1__ClientStats *clients[] = {&one, &one};
    Mlacat__V1__DeviceStats none = MLACAT__V1__DEVICE_STATS__INIT;
    Mlacat__V1__DeviceStats device = MLACAT__V1__DEVICE_STATS__INIT;
    Mlacat__V1__DeviceStats *devices[] = {&none, &device};
    envelope.request_id = request_id;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_STATS;
    envelope.stats = &body;
    body.clients = 2;
    strange.code = 99;
    strange.count = 3;
    op.op = 1;
    op.calls = 12;
    one.name = (char *)(uintptr_t) "someone";
    body.outcomes = outcomes;
    body.n_outcomes = 1;
    body.ops = ops;
    body.n_ops = 1;
    body.client_stats = clients;
    body.n_client_stats = 2;
    device.memory_leaving = memory->leaving;
    device.memory_released = memory->released;
    device.memory_closed = memory->closed;
    device.gated_calls = 21;
    device.armed_calls = 22;
    device.armed_lapses = 23;
    body.devices = devices;
    body.n_devices = 2;
    send_message(fd, &envelope, -1);
}

void say_completions(int fd, const uint64_t *call_ids, unsigned nr, const struct say_status *said)
{
    Mlacat__V1__Envelope envelope = MLACAT__V1__ENVELOPE__INIT;
    Mlacat__V1__Completions body = MLACAT__V1__COMPLETIONS__INIT;
    Mlacat__V1__Status status = MLACAT__V1__STATUS__INIT;
    Mlacat__V1__Completion *list = calloc(nr, sizeof(*list));
    Mlacat__V1__Completion **pointers = calloc(nr, sizeof(*pointers));
    status.code = said->code;
    status.scope = said->scope;
    status.message = (char *)(uintptr_t)said->text;
    for (unsigned i = 0; i < nr; i++) {
        mlacat__v1__completion__init(&list[i]);
        list[i].call_id = call_ids[i];
        list[i].queue_ns = 11;
        list[i].device_ns = 22;
        list[i].status = said->code != MLACAT_OK ? &status : NULL;
        pointers[i] = &list[i];
    }
    body.completions = pointers;
    body.n_completions = nr;
    envelope.body_case = MLACAT__V1__ENVELOPE__BODY_COMPLETIONS;
    envelope.completions = &body;
    send_message(fd, &envelope, -1);
    free(list);
    free(pointers);
}
