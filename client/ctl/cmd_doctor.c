/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "doctor.h"

static const char *const state_names[DOCTOR_STATES_NR] = {"OK", "WARN", "FAIL", "SKIPPED"};

void doctor_found(struct doctor *doctor, const char *check, enum doctor_state state, const char *format, ...)
{
    struct doctor_finding *finding;
    va_list args;

    if (doctor->findings_nr == DOCTOR_FINDINGS_MAX) /* so many GPUs that the last of them go unsaid */
        doctor->findings_nr--;
    finding = &doctor->findings[doctor->findings_nr++];
    *finding = (struct doctor_finding){.check = check, .state = state};
    va_start(args, format);
    vsnprintf(finding->found, sizeof(finding->found), format, args);
    va_end(args);
}

void doctor_advise(struct doctor *doctor, const char *format, ...)
{
    struct doctor_finding *finding = &doctor->findings[doctor->findings_nr - 1];
    va_list args;

    va_start(args, format);
    vsnprintf(finding->advice, sizeof(finding->advice), format, args);
    va_end(args);
}

bool doctor_daemon_variable(const struct doctor *doctor, const char *name, char *value, size_t size, bool *readable)
{
    char path[64];
    char *entry = NULL;
    size_t capacity = 0;
    size_t length = strlen(name);
    bool found = false;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/environ", (int)doctor->pid);
    file = doctor->pid > 0 ? fopen(path, "re") : NULL;
    *readable = file != NULL;
    while (file && !found && getdelim(&entry, &capacity, '\0', file) > 0)
        found = strncmp(entry, name, length) == 0 && entry[length] == '=';
    if (found)
        snprintf(value, size, "%s", entry + length + 1);
    free(entry);
    if (file)
        fclose(file);
    return found;
}

static void print_text(const struct doctor *doctor, const size_t counts[DOCTOR_STATES_NR])
{
    for (size_t i = 0; i < doctor->findings_nr; i++) {
        const struct doctor_finding *finding = &doctor->findings[i];

        printf("%-7s  %-11s  %s\n", state_names[finding->state], finding->check, finding->found);
        if (finding->advice[0])
            printf("%-7s  %-11s  -> %s\n", "", "", finding->advice);
    }
    printf("\n%zu checks: %zu ok, %zu warnings, %zu failed, %zu skipped\n", doctor->findings_nr, counts[DOCTOR_OK],
           counts[DOCTOR_WARN], counts[DOCTOR_FAIL], counts[DOCTOR_SKIPPED]);
}

static void print_json(const struct doctor *doctor, bool healthy)
{
    json_t *checks = json_array();

    for (size_t i = 0; i < doctor->findings_nr; i++) {
        const struct doctor_finding *finding = &doctor->findings[i];

        json_array_append_new(checks, json_pack("{s:s, s:s, s:s, s:s}", "check", finding->check, "state",
                                                state_names[finding->state], "found", finding->found, "advice",
                                                finding->advice));
    }
    ctl_print_json(json_pack("{s:b, s:o}", "healthy", healthy, "checks", checks));
}

int cmd_doctor(const struct ctl_options *options)
{
    static struct doctor doctor;
    size_t counts[DOCTOR_STATES_NR] = {0};

    doctor = (struct doctor){.options = options};
    doctor_service(&doctor);
    doctor_driver(&doctor);
    doctor_mps(&doctor);
    doctor_memory(&doctor);
    doctor_limits(&doctor);
    doctor_cache(&doctor);
    mlacat_disconnect(doctor.client);
    for (size_t i = 0; i < doctor.findings_nr; i++)
        counts[doctor.findings[i].state]++;
    if (options->json)
        print_json(&doctor, counts[DOCTOR_FAIL] == 0);
    else
        print_text(&doctor, counts);
    return counts[DOCTOR_FAIL] == 0 ? CTL_OK : CTL_FAILED;
}
