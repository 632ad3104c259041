/* SPDX-License-Identifier: Apache-2.0 */
/* Many calls and registrations, and whether memory, descriptors or mappings grew by them: in the service and in here.
 */
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "common.h"
#include "measure.h"
#include "table.h"

#define WINDOW 64u
#define BUFFER_BYTES 4096u
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
#define SETTLE_TRIES 50
#define SETTLE_US 20000
#define TEXT 48

struct soak {
    const struct ctl_options *options;
    struct mlacat_client *client;
    struct mlacat_stream *stream;
    struct mlacat_buffer *buffer;
    pid_t daemon;
    uint64_t ids[WINDOW];
};

struct both {
    struct process_counters daemon;
    struct process_counters client;
};

static struct mlacat_call small_call(struct mlacat_buffer *buffer)
{
    struct mlacat_call call = {
        .size = sizeof(call), .op = MLACAT_OP_CONCAT_MLA_ABSORB_Q, .dtype = MLACAT_DTYPE_FP8_E4M3};

    call.operand[0] = mlacat_tensor_contiguous(buffer, 0, 1, 2, 48);
    call.operand[1] = mlacat_tensor_contiguous(buffer, 1024, 1, 2, 32);
    call.operand[2] = mlacat_tensor_contiguous(buffer, 2048, 1, 2, 16);
    return call;
}

static enum mlacat_status run_calls(struct soak *soak, uint64_t nr)
{
    struct mlacat_call call = small_call(soak->buffer);

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
    enum mlacat_status status = mlacat_buffer_alloc(soak->client, soak->options->device, BUFFER_BYTES, &buffer);

    if (status == MLACAT_OK && in_flight) {
        call = small_call(buffer);
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

static int measure(struct soak *soak)
{
    struct both before;
    struct both after;
    uint64_t begin;
    enum mlacat_status status = run_calls(soak, WARM_CALLS);

    if (status == MLACAT_OK)
        status = run_registrations(soak, WARM_REGISTRATIONS);
    if (status != MLACAT_OK)
        return ctl_fail("soak, while warming up", status);
    if (!count(soak, &before))
        return CTL_FAILED;
    begin = measure_now_ns();
    status = run_calls(soak, soak->options->calls);
    if (status == MLACAT_OK)
        status = run_registrations(soak, soak->options->registrations);
    if (status != MLACAT_OK)
        return ctl_fail("soak", status);
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

int cmd_soak(const struct ctl_options *options)
{
    struct soak soak = {.options = options};
    struct mlacat_server_info server = {.size = sizeof(server)};
    enum mlacat_status status;
    int result;

    if (!ctl_connect(options, &soak.client))
        return CTL_UNREACHABLE;
    status = mlacat_server_info(soak.client, &server);
    if (status == MLACAT_OK)
        status = mlacat_stream_open(soak.client, options->device, &soak.stream);
    if (status == MLACAT_OK)
        status = mlacat_buffer_alloc(soak.client, options->device, BUFFER_BYTES, &soak.buffer);
    soak.daemon = (pid_t)server.pid;
    result = status == MLACAT_OK ? measure(&soak) : ctl_fail("cannot open a stream or make a buffer", status);
    mlacat_buffer_release(soak.buffer);
    mlacat_stream_close(soak.stream);
    mlacat_disconnect(soak.client);
    return result;
}
