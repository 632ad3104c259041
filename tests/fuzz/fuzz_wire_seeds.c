/* SPDX-License-Identifier: Apache-2.0 */
/* Writes the first inputs for fuzz_wire into the folder that is its argument: one proper packet of each kind. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "wire.h"
#include "wire_packets.h"

static const char *folder;

/* The first byte of an input is the number of descriptors. */
static void write_seed(const char *name, uint8_t fds_nr, const uint8_t *bytes, size_t size)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fputc(fds_nr, file) == EOF || fwrite(bytes, 1, size, file) != size || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
}

static void write_packet(const char *name, uint8_t fds_nr, const Mlacat__V1__Envelope *envelope)
{
    static uint8_t bytes[WIRE_PACKET_BYTES];
    write_seed(name, fds_nr, bytes, mlacat__v1__envelope__pack(envelope, bytes));
}

static void write_registrations(void)
{
    struct registration r;
    packet_registration(&r, MLACAT__V1__MEMORY__KIND_HOST);
    write_packet("register_host", 1, &r.envelope);
    packet_registration(&r, MLACAT__V1__MEMORY__KIND_CUDA_IPC);
    write_packet("register_cuda_ipc", 0, &r.envelope);
    packet_registration(&r, MLACAT__V1__MEMORY__KIND_CUDA_VMM);
    r.vmm.n_chunks = 3;
    write_packet("register_cuda_vmm", 3, &r.envelope);
    r.vmm.n_chunks = 65;
    write_packet("register_cuda_vmm_65", 64, &r.envelope);
}

static void write_event_registration(void)
{
    struct event_registration r;
    packet_event_registration(&r);
    write_packet("register_event", 0, &r.envelope);
    r.body.handle.len = 65;
    write_packet("register_event_65", 0, &r.envelope);
}

static void write_submissions(void)
{
    static struct submission s;
    struct registration r;
    packet_submission(&s);
    write_packet("submit", 0, &s.envelope);
    s.call.wait_event = &s.event;
    s.body.n_calls = 5;
    write_packet("submit_5_wait", 0, &s.envelope);
    packet_submission(&s);
    packet_registration(&r, MLACAT__V1__MEMORY__KIND_CUDA_VMM);
    r.vmm.n_chunks = 2;
    packet_set_inline(&s, 1, &r);
    write_packet("submit_inline", 2, &s.envelope);
}

/* Request 5 with an empty body of each field of Envelope; those of the daemon among them. */
static void write_empty_bodies(void)
{
    for (uint8_t field = 2; field <= 39; field++) {
        uint8_t two_byte_tag[] = {0x08, 5, (uint8_t)(field << 3 | 2 | 0x80), (uint8_t)(field >> 4), 0};
        uint8_t tag[] = {0x08, 5, (uint8_t)(field << 3 | 2), 0};
        char name[32];
        snprintf(name, sizeof(name), "body_%d", field);
        if (field < 16) {
            write_seed(name, 0, tag, sizeof(tag));
        } else {
            write_seed(name, 0, two_byte_tag, sizeof(two_byte_tag));
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    folder = argv[1];
    write_registrations();
    write_event_registration();
    write_submissions();
    write_empty_bodies();
    return 0;
}
