/* SPDX-License-Identifier: Apache-2.0 */
#include "common.h"

#include <stdio.h>
#include <string.h>

/* A daemon that systemd starts for this connection may take seconds until it answers. */
#define CONNECT_MS 10000

struct mlacat_connect_options ctl_connect_options(const struct ctl_options *options, const char *name)
{
    return (struct mlacat_connect_options){.size = sizeof(struct mlacat_connect_options),
                                           .socket = options->socket,
                                           .name = name,
                                           .connect_timeout_ms =
                                               options->timeout_ms != 0 ? (uint32_t)options->timeout_ms : CONNECT_MS};
}

bool ctl_connect(const struct ctl_options *options, struct mlacat_client **client)
{
    struct mlacat_connect_options connect = ctl_connect_options(options, "mlacatctl");
    enum mlacat_status status = mlacat_connect(&connect, client);

    if (status == MLACAT_OK)
        return true;
    fprintf(stderr, "mlacatctl: cannot connect: %s: %s\n", mlacat_status_name(status), mlacat_error_message());
    return false;
}

int ctl_fail(const char *what, enum mlacat_status status)
{
    return ctl_fail_for(what, status, mlacat_error_message());
}

int ctl_fail_for(const char *what, enum mlacat_status status, const char *message)
{
    fprintf(stderr, "mlacatctl: %s: %s: %s\n", what, mlacat_status_name(status), message);
    return CTL_FAILED;
}

void ctl_print_json(json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(value);
}

void ctl_boot_id_text(const uint8_t boot_id[16], char text[33])
{
    for (size_t i = 0; i < 16; i++)
        snprintf(text + 2 * i, 3, "%02x", boot_id[i]);
}

struct mlacat_tensor ctl_tensor(const struct shape_operand *operand, struct mlacat_buffer *buffer)
{
    struct mlacat_tensor tensor = {.buffer = buffer, .offset_bytes = operand->offset_bytes};

    memcpy(tensor.shape, operand->shape, sizeof(tensor.shape));
    memcpy(tensor.strides, operand->strides, sizeof(tensor.strides));
    return tensor;
}
