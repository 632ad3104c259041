/* SPDX-License-Identifier: Apache-2.0 */
/* mlacatctl: the operator's command for a running mlacatd. */
#include <stdio.h>
#include <unistd.h>

#include "common.h"
#include "guard.h"

static int run_or_models(const struct ctl_options *options)
{
    return options->models ? cmd_models(options) : cmd_run(options);
}

static int dispatch(const struct ctl_options *options)
{
    static int (*const run[])(const struct ctl_options *) = {
        [CTL_PING] = cmd_ping,   [CTL_INFO] = cmd_info,           [CTL_STATS] = cmd_stats,
        [CTL_DRAIN] = cmd_drain, [CTL_LOG_LEVEL] = cmd_log_level, [CTL_RUN] = run_or_models,
        [CTL_BENCH] = cmd_bench, [CTL_SOAK] = cmd_soak,           [CTL_DOCTOR] = cmd_doctor,
    };

    /* ping says by itself that it is late, as its result. */
    if (options->timeout_ms != 0 && options->command != CTL_PING)
        guard_start(options->timeout_ms, STDERR_FILENO, CTL_UNREACHABLE,
                    "mlacatctl: %s: not done within %llu ms (--timeout); is mlacatd stopped or stuck?\n",
                    options_command_name(options->command), (unsigned long long)options->timeout_ms);
    return run[options->command](options);
}

int main(int argc, char **argv)
{
    struct ctl_options options;
    char error[CTL_ERROR_BYTES];
    int status;

    if (!options_parse(argc, argv, &options, error)) {
        fprintf(stderr, "mlacatctl: %s\n", error);
        if (options.command != CTL_NONE)
            fprintf(stderr, "Try 'mlacatctl %s --help'.\n", options_command_name(options.command));
        return CTL_USAGE;
    }
    if (options.help) {
        options_help(stdout, options.command);
        return CTL_OK;
    }
    if (options.version) {
        printf("mlacatctl %s\n", mlacat_version());
        return CTL_OK;
    }
    status = dispatch(&options);
    /* A full disk or a closed pipe must not pass for success. */
    if (fflush(stdout) != 0 || ferror(stdout)) {
        perror("mlacatctl: cannot write the output");
        return CTL_FAILED;
    }
    return status;
}
