/* SPDX-License-Identifier: Apache-2.0 */
/* GPU memory that the daemon's process takes, as the driver's management library (NVML) counts it. */
#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "doctor.h"
#include "measure.h"

#define NVML_LIBRARY "libnvidia-ml.so.1"
#define PROCESSES_MAX 512
#define NOT_TOLD UINT64_MAX

struct nvml_device;

/* nvmlProcessInfo_v2_t, of the functions that end with _v3 */
struct nvml_process {
    unsigned pid;
    unsigned long long used_bytes;
    unsigned gpu_instance;
    unsigned compute_instance;
};
_Static_assert(sizeof(struct nvml_process) == 24, "nvmlProcessInfo_v2_t");

typedef int (*list_call)(struct nvml_device *device, unsigned *processes_nr, struct nvml_process *processes);

static struct {
    int (*init)(void);
    int (*find)(const char *uuid, struct nvml_device **device);
    list_call list[2]; /* processes by themselves, and clients of MPS */
} nvml;

static bool fill(void *library)
{
    static const struct {
        const char *name;
        void *slot;
    } entries[] = {{"nvmlInit_v2", &nvml.init},
                   {"nvmlDeviceGetHandleByUUID", &nvml.find},
                   {"nvmlDeviceGetComputeRunningProcesses_v3", &nvml.list[0]},
                   {"nvmlDeviceGetMPSComputeRunningProcesses_v3", &nvml.list[1]}};

    for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
        void *symbol = dlsym(library, entries[i].name);

        if (!symbol)
            return false;
        memcpy(entries[i].slot, &symbol, sizeof(symbol));
    }
    return true;
}

/* True: the daemon is in the list; *bytes is what it uses there, or NOT_TOLD. */
static bool look_up(struct nvml_device *device, list_call list, pid_t pid, uint64_t *bytes)
{
    static struct nvml_process processes[PROCESSES_MAX];
    unsigned processes_nr = PROCESSES_MAX;

    if (list(device, &processes_nr, processes) != 0)
        return false;
    for (unsigned i = 0; i < processes_nr && i < PROCESSES_MAX; i++)
        if (processes[i].pid == (unsigned)pid) {
            *bytes = processes[i].used_bytes;
            return true;
        }
    return false;
}

static void check_gpu(struct doctor *doctor, const char *uuid)
{
    struct nvml_device *device;
    uint64_t bytes = 0;
    char text[32];

    if (nvml.find(uuid, &device) != 0) {
        doctor_found(doctor, "memory", DOCTOR_SKIPPED, "%s: UNKNOWN: NVML does not know this GPU", uuid);
    } else if (!look_up(device, nvml.list[0], doctor->pid, &bytes) &&
               !look_up(device, nvml.list[1], doctor->pid, &bytes)) {
        doctor_found(doctor, "memory", DOCTOR_SKIPPED,
                     "%s: UNKNOWN: NVML lists no pid %d there; it may count in another pid namespace", uuid,
                     (int)doctor->pid);
    } else if (bytes == NOT_TOLD) {
        doctor_found(doctor, "memory", DOCTOR_SKIPPED, "%s: UNKNOWN: NVML tells no figures of pid %d", uuid,
                     (int)doctor->pid);
    } else {
        measure_bytes_text((double)bytes, text, sizeof(text));
        doctor_found(doctor, "memory", DOCTOR_OK,
                     "%s: mlacatd itself (context and kernels) takes %s; start it before a model runner measures how "
                     "much memory is free",
                     uuid, text);
    }
}

static void check_served(struct doctor *doctor)
{
    struct mlacat_device_info device = {.size = sizeof(device)};

    for (uint32_t i = 0; mlacat_device_info(doctor->client, i, &device) == MLACAT_OK; i++)
        if (device.available && strcmp(device.kind, "cuda") == 0)
            check_gpu(doctor, device.uuid);
}

void doctor_memory(struct doctor *doctor)
{
    void *library;

    if (doctor->no_gpu[0]) {
        doctor_found(doctor, "memory", DOCTOR_SKIPPED, "%s", doctor->no_gpu);
        return;
    }
    if (!doctor->client || !doctor->serves_gpu) {
        doctor_found(doctor, "memory", DOCTOR_SKIPPED,
                     doctor->client ? "mlacatd serves no GPU" : "there is no connection to mlacatd");
        return;
    }
    if (doctor->pid == 0) {
        doctor_found(doctor, "memory", DOCTOR_SKIPPED, "UNKNOWN: mlacatd is in another pid namespace");
        return;
    }
    library = dlopen(NVML_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library || !fill(library) || nvml.init() != 0) {
        doctor_found(doctor, "memory", DOCTOR_SKIPPED, "UNKNOWN: " NVML_LIBRARY " %s",
                     library ? "is too old or does not start" : "cannot be loaded");
        return;
    }
    check_served(doctor);
}
