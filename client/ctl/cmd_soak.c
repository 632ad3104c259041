/* SPDX-License-Identifier: Apache-2.0 */
/* Many calls and registrations, whether the last results are right, and whether memory, descriptors or mappings grew
 * by them: in the service and in here. */
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "area.h"
#include "common.h"
#include "measure.h"
#include "random.h"
#include "reference.h"
#include "table.h"

#define WINDOW 64u
#define BUFFER_BYTES 4096u
/* Where the buffer has its operands; each with its guards needs less. */
#define OPERAND_BYTES 1024u
/* Each so many registrations a call still uses the buffer when it is released. */
#define RELEASE_IN_FLIGHT 8u
#define WARM_CALLS 2000u
#define WARM_REGISTRATIONS 200u
/* What the allocator may keep and what comes and goes; a leak of 8 bytes a call or of one thing in 10^4 is far above.
 */
#define SLACK_RSS_BYTES (1u << 20)
#define SLACK_FDS 4u
#define SLACK_MAPPINGS 8u
/* The service lets released memory go a moment later. */
#define SETTLE_TRIES 500
#define SETTLE_US 20000
#define TEXT 48

struct soak {
    const struct ctl_options *options;
    struct mlacat_client *client;
    struct area_device device;
    struct mlacat_stream *stream;
    struct area area;
    struct shape_layout layout;
    pid_t daemon;
    uint64_t ids[WINDOW];
};

struct both {
    struct process_counters daemon;
    struct process_counters client;
};

static const struct shape small_shape = {.op = MLACAT_OP_CONCAT_MLA_ABSORB_Q,
                                         .dtype = MLACAT_DTYPE_FP8_E4M3,
                                         .dim0 = 1,
                                         .dim1 = 2,
                                         .first = 32,
                                         .second = 16};

static struct mlacat_call small_call(const struct soak *soak, struct mlacat_buffer *buffer)
{
    struct mlacat_call call = {.size = sizeof(call), .op = small_shape.op, .dtype = small_shape.dtype};

    for (unsigned i = 0; i < SHAPE_OPERANDS; i++) {
        call.operand[i] = ctl_tensor(&soak->layout.operand[i], buffer);
        call.operand[i].offset_bytes += i * (uint64_t)OPERAND_BYTES;
    }
    return call;
}

static void find_operands(const struct soak *soak, uint8_t *data[SHAPE_OPERANDS])
{
    for (unsigned i = 0; i < SHAPE_OPERANDS; i++)
        data[i] = soak->area.data + i * (size_t)OPERAND_BYTES;
}

static enum mlacat_status poison(struct soak *soak)
{
    uint8_t *data[SHAPE_OPERANDS];

    find_operands(soak, data);
    random_fill(soak->options->seed, small_shape.dtype, soak->area.data, BUFFER_BYTES);
    reference_poison(&small_shape, &soak->layout, data);
    return area_upload(&soak->device, &soak->area, BUFFER_BYTES);
}

/* Whether the calls since poison() did what they should; false: printed why. */
static bool verify(struct soak *soak)
{
    uint8_t *data[SHAPE_OPERANDS];
    struct difference difference;
    char text[256];
    enum mlacat_status status = area_download(&soak->device, &soak->area, BUFFER_BYTES);

    if (status != MLACAT_OK) {
        ctl_fail_for("soak", status, area_message(&soak->device));
        return false;
    }
    find_operands(soak, data);
    if (reference_check(&small_shape, &soak->layout, data, &difference))
        return true;
    reference_text(&difference, text, sizeof(text));
    fprintf(stderr, "mlacatctl: soak: %s\n", text);
    return false;
}

static enum mlacat_status run_calls(struct soak *soak, uint64_t nr)
{
    struct mlacat_call call = small_call(soak, soak->area.buffer);

    for (uint64_t i = 0; i < nr + WINDOW; i++) {
        enum mlacat_status status = MLACAT_OK;

        if (i >= WINDOW && i - WINDOW < nr)
            status = mlacat_wait(soak->stream, soak->ids[i % WINDOW], -1, NULL);
        if (status == MLACAT_OK && i < nr)
            status = mlacat_submit(soak->stream, &call, &soak->ids[i % WINDOW]);
        if (status != MLACAT_OK)
            return status;
    }
    return MLACAT_OK;
}

static enum mlacat_status register_once(struct soak *soak, bool in_flight)
{
    struct mlacat_buffer *buffer = NULL;
    struct mlacat_call call;
    uint64_t id = 0;
    enum mlacat_status status = area_register(&soak->device, &soak->area, BUFFER_BYTES, &buffer);

    if (status == MLACAT_OK && in_flight) {
        call = small_call(soak, buffer);
        status = mlacat_submit(soak->stream, &call, &id);
    }
    mlacat_buffer_release(buffer);
    if (status == MLACAT_OK && in_flight)
        status = mlacat_wait(soak->stream, id, -1, NULL);
    return status;
}

static enum mlacat_status run_registrations(struct soak *soak, uint64_t nr)
{
    enum mlacat_status status = MLACAT_OK;

    for (uint64_t i = 0; status == MLACAT_OK && i < nr; i++)
        status = register_once(soak, i % RELEASE_IN_FLIGHT == 0);
    return status;
}

static bool count(const struct soak *soak, struct both *counters)
{
    if (measure_process(soak->daemon, &counters->daemon) && measure_process(getpid(), &counters->client))
        return true;
    fprintf(stderr,
            "mlacatctl: soak: cannot read /proc/%d of the daemon; run as root or as its user, in its pid namespace\n",
            (int)soak->daemon);
    return false;
}

static bool process_flat(const struct process_counters *before, const struct process_counters *after)
{
    return after->rss_anon_bytes <= before->rss_anon_bytes + SLACK_RSS_BYTES && after->fds <= before->fds + SLACK_FDS &&
           after->mappings <= before->mappings + SLACK_MAPPINGS;
}

static bool flat(const struct both *before, const struct both *after)
{
    return process_flat(&before->daemon, &after->daemon) && process_flat(&before->client, &after->client);
}

static json_t *counters_json(const struct process_counters *before, const struct process_counters *after)
{
    return json_pack("{s:[I,I], s:[I,I], s:[I,I]}", "rss_anon_bytes", (json_int_t)before->rss_anon_bytes,
                     (json_int_t)after->rss_anon_bytes, "fds", (json_int_t)before->fds, (json_int_t)after->fds,
                     "mappings", (json_int_t)before->mappings, (json_int_t)after->mappings);
}

static void add_row(struct table *table, const char *process, const char *what, uint64_t before, uint64_t after,
                    uint64_t slack)
{
    char text[3][TEXT];
    const char *cells[] = {process, what, text[0], text[1], text[2], after <= before + slack ? "flat" : "GREW"};

    snprintf(text[0], TEXT, "%" PRIu64, before);
    snprintf(text[1], TEXT, "%" PRIu64, after);
    snprintf(text[2], TEXT, "%" PRIu64, slack);
    table_row(table, cells);
}

static void add_rows(struct table *table, const char *process, const struct process_counters *before,
                     const struct process_counters *after)
{
    add_row(table, process, "RssAnon bytes", before->rss_anon_bytes, after->rss_anon_bytes, SLACK_RSS_BYTES);
    add_row(table, process, "descriptors", before->fds, after->fds, SLACK_FDS);
    add_row(table, process, "mappings", before->mappings, after->mappings, SLACK_MAPPINGS);
}

static void print(const struct soak *soak, const struct both *before, const struct both *after, double seconds)
{
    static const struct table_column columns[] = {{"process", 0, false},    {"what", 0, false},
                                                  {"before", 0, true},      {"after", 0, true},
                                                  {"may grow by", 0, true}, {"verdict", 0, false}};
    const struct ctl_options *options = soak->options;
    struct table table;

    if (options->json) {
        ctl_print_json(json_pack("{s:I, s:I, s:f, s:b, s:o, s:o}", "calls", (json_int_t)options->calls, "registrations",
                                 (json_int_t)options->registrations, "seconds", seconds, "flat", flat(before, after),
                                 "daemon", counters_json(&before->daemon, &after->daemon), "client",
                                 counters_json(&before->client, &after->client)));
        return;
    }
    printf("%" PRIu64 " calls and %" PRIu64 " registrations in %.1f s\n\n", options->calls, options->registrations,
           seconds);
    table_init(&table, columns, 6);
    add_rows(&table, "mlacatd", &before->daemon, &after->daemon);
    add_rows(&table, "mlacatctl", &before->client, &after->client);
    table_flush(&table, stdout);
    table_fini(&table);
}

/* False: printed why. */
static bool work(struct soak *soak, uint64_t calls, uint64_t registrations)
{
    enum mlacat_status status = poison(soak);

    if (status != MLACAT_OK) {
        ctl_fail_for("soak", status, area_message(&soak->device));
        return false;
    }
    status = run_calls(soak, calls);
    if (status == MLACAT_OK)
        status = run_registrations(soak, registrations);
    if (status != MLACAT_OK) {
        ctl_fail("soak", status);
        return false;
    }
    return calls == 0 || verify(soak);
}

static int measure(struct soak *soak)
{
    struct both before;
    struct both after;
    uint64_t begin;

    if (!work(soak, WARM_CALLS, WARM_REGISTRATIONS) || !count(soak, &before))
        return CTL_FAILED;
    begin = measure_now_ns();
    if (!work(soak, soak->options->calls, soak->options->registrations))
        return CTL_FAILED;
    begin = measure_now_ns() - begin;
    if (!count(soak, &after))
        return CTL_FAILED;
    for (int i = 0; i < SETTLE_TRIES && !flat(&before, &after); i++) {
        usleep(SETTLE_US);
        if (!count(soak, &after))
            return CTL_FAILED;
    }
    print(soak, &before, &after, (double)begin / 1e9);
    return flat(&before, &after) ? CTL_OK : CTL_FAILED;
}

static enum mlacat_status open_soak(struct soak *soak)
{
    struct mlacat_server_info server = {.size = sizeof(server)};
    enum mlacat_status status = area_open(&soak->device, soak->client, soak->options->device);

    if (status == MLACAT_OK)
        status = area_stream_open(&soak->device, MLACAT_TRANSPORT_AUTO, &soak->stream);
    if (status == MLACAT_OK)
        status = area_new(&soak->device, BUFFER_BYTES, &soak->area);
    if (status != MLACAT_OK)
        return status;
    shape_layout(&small_shape, &soak->layout); /* it fits: the shape is ours */
    mlacat_server_info(soak->client, &server);
    soak->daemon = (pid_t)server.pid;
    return MLACAT_OK;
}

int cmd_soak(const struct ctl_options *options)
{
    struct soak soak = {.options = options};
    enum mlacat_status status;
    int result;

    if (!ctl_connect(options, &soak.client))
        return CTL_UNREACHABLE;
    status = open_soak(&soak);
    result = status == MLACAT_OK
                 ? measure(&soak)
                 : ctl_fail_for("cannot open a stream or make a buffer", status, area_message(&soak.device));
    mlacat_stream_close(soak.stream);
    area_free(&soak.device, &soak.area);
    area_close(&soak.device);
    mlacat_disconnect(soak.client);
    return result;
}
