/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>

#include "common.h"
#include "measure.h"
#include "names.h"
#include "table.h"

static json_t *device_json(const struct mlacat_device_info *device)
{
    return json_pack("{s:s, s:s, s:s, s:b, s:s, s:i}", "uuid", device->uuid, "kind", device->kind, "name", device->name,
                     "available", device->available != 0, "reason", device->reason, "workers", (int)device->workers);
}

static json_t *ops_json(void)
{
    json_t *array = json_array();

    for (int i = 1; i < MLACAT_OP_END_; i++) {
        const struct op_name *op = names_op((enum mlacat_op)i);

        if (op)
            json_array_append_new(array, json_pack("{s:i, s:s, s:[s,s,s]}", "number", i, "name", op->name, "operands",
                                                   op->operand[0], op->operand[1], op->operand[2]));
    }
    return array;
}

static json_t *server_json(const struct mlacat_server_info *info, json_t *devices)
{
    char boot_id[33];

    ctl_boot_id_text(info->boot_id, boot_id);
    return json_pack("{s:{s:s, s:I, s:s}, s:s, s:{s:I, s:I, s:I, s:I, s:I, s:I}, s:o, s:o}", "server", "version",
                     info->version, "pid", (json_int_t)info->pid, "boot_id", boot_id, "client_version",
                     mlacat_version(), "limits", "streams", (json_int_t)info->max_streams, "buffers",
                     (json_int_t)info->max_buffers, "mapped_bytes", (json_int_t)info->max_mapped_bytes, "stream_calls",
                     (json_int_t)info->max_stream_calls, "calls", (json_int_t)info->max_calls, "events",
                     (json_int_t)info->max_events, "devices", devices, "ops", ops_json());
}

static void print_server(const struct mlacat_server_info *info)
{
    char boot_id[33];
    char mapped[32];

    ctl_boot_id_text(info->boot_id, boot_id);
    measure_bytes_text((double)info->max_mapped_bytes, mapped, sizeof(mapped));
    printf("server    mlacatd %s, pid %" PRIu32 "\n", info->version, info->pid);
    printf("boot id   %s\n", boot_id);
    printf("client    libmlacat %s\n", mlacat_version());
    printf("limits    %" PRIu32 " streams, %" PRIu32 " buffers, %s mapped, %" PRIu32
           " calls in flight a stream, %" PRIu32 " in all without rings, %" PRIu32 " events\n\n",
           info->max_streams, info->max_buffers, mapped, info->max_stream_calls, info->max_calls, info->max_events);
}

static void print_device(struct table *table, const struct mlacat_device_info *device)
{
    char workers[16];
    const char *cells[] = {device->uuid, device->kind, workers,
                           device->available   ? "yes"
                           : device->reason[0] ? device->reason
                                               : "no",
                           device->name};

    snprintf(workers, sizeof(workers), "%" PRIu32, device->workers);
    table_row(table, cells);
}

static void print_ops(void)
{
    static const struct table_column columns[] = {{"op", 0, false}, {"number", 0, true}, {"operands", 0, false}};
    struct table table;

    table_init(&table, columns, 3);
    for (int i = 1; i < MLACAT_OP_END_; i++) {
        const struct op_name *op = names_op((enum mlacat_op)i);
        char number[16];
        char operands[128];
        const char *cells[] = {op ? op->name : "", number, operands};

        if (!op)
            continue;
        snprintf(number, sizeof(number), "%d", i);
        snprintf(operands, sizeof(operands), "%s [%s,%s,%s] then %s [%s,%s,%s] -> %s [%s,%s,%s+%s]", op->operand[1],
                 op->extent[0], op->extent[1], op->extent[2], op->operand[2], op->extent[0],
                 op->broadcast ? "1" : op->extent[1], op->extent[3], op->operand[0], op->extent[0], op->extent[1],
                 op->extent[2], op->extent[3]);
        table_row(&table, cells);
    }
    table_flush(&table, stdout);
    table_fini(&table);
}

/* Both forms from one walk over the devices. */
static enum mlacat_status show(struct mlacat_client *client, const struct ctl_options *options)
{
    static const struct table_column columns[] = {
        {"device", 0, false}, {"kind", 0, false}, {"workers", 0, true}, {"available", 0, false}, {"name", 0, false}};
    struct mlacat_server_info info = {.size = sizeof(info)};
    json_t *devices = json_array();
    struct table table;
    enum mlacat_status status = mlacat_server_info(client, &info);

    table_init(&table, columns, 5);
    for (uint32_t i = 0; status == MLACAT_OK && i < info.devices; i++) {
        struct mlacat_device_info device = {.size = sizeof(device)};

        status = mlacat_device_info(client, i, &device);
        if (status != MLACAT_OK)
            break;
        json_array_append_new(devices, device_json(&device));
        print_device(&table, &device);
    }
    if (status == MLACAT_OK && options->json) {
        ctl_print_json(server_json(&info, json_incref(devices)));
    } else if (status == MLACAT_OK) {
        print_server(&info);
        table_flush(&table, stdout);
        putchar('\n');
        print_ops();
    }
    table_fini(&table);
    json_decref(devices);
    return status;
}

int cmd_info(const struct ctl_options *options)
{
    struct mlacat_client *client = NULL;
    enum mlacat_status status;
    int result = CTL_OK;

    if (!ctl_connect(options, &client))
        return CTL_UNREACHABLE;
    status = show(client, options);
    if (status != MLACAT_OK)
        result = ctl_fail("info", status);
    mlacat_disconnect(client);
    return result;
}
