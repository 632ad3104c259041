/* SPDX-License-Identifier: Apache-2.0 */
/* mlacatd: reads its configuration, builds the daemon, runs it, takes it down. */
#include <stdio.h>
#include <stdlib.h>

#include "config.h"
#include "cuda_jit.h"
#include "daemon.h"
#include "log.h"

int main(int argc, char *argv[])
{
    static struct daemon daemon;
    static struct config config;
    enum config_action action;
    struct error err = {0};

    log_init(LOG_LEVEL_INFO);
    if (jit_is_helper(argc, argv)) {
        return jit_helper_main(argc, argv);
    }
    if (config_load(&config, argc, argv, &action, &err) != MLACAT_OK) {
        log_error("configuration", "status=%s reason=%s", status_name(err.code), log_text(err.message));
        return 2;
    }
    switch (action) {
    case CONFIG_PRINT:
        config_print(&config, stdout);
        return EXIT_SUCCESS;
    case CONFIG_HELP:
        config_help(stdout);
        return EXIT_SUCCESS;
    case CONFIG_VERSION:
        printf("mlacatd " MLACAT_VERSION "\n");
        return EXIT_SUCCESS;
    case CONFIG_RUN:
        break;
    }
    log_set_level(config.log_level);
    if (daemon_init(&daemon, &config, argc, argv, &err) != MLACAT_OK) {
        log_error("start_failed", "status=%s reason=%s", status_name(err.code), log_text(err.message));
        return EXIT_FAILURE;
    }
    int exit_code = daemon_run(&daemon);
    daemon_fini(&daemon);
    daemon_log_exit(&daemon);
    return exit_code;
}
