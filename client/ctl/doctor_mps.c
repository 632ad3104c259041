/* SPDX-License-Identifier: Apache-2.0 */
/* MPS lets kernels of several processes share a GPU at once, for one user at a time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "doctor.h"

#define PIPE_VARIABLE "CUDA_MPS_PIPE_DIRECTORY"
#define PIPE_DEFAULT "/tmp/nvidia-mps"
#define PIPE_BYTES 256
#define CONNECTIONS_VARIABLE "CUDA_DEVICE_MAX_CONNECTIONS"
#define CONNECTIONS_DEFAULT "32" /* the daemon's own */

static void check_mode(struct doctor *doctor)
{
    char connections[16] = CONNECTIONS_DEFAULT;
    bool readable;

    doctor_daemon_variable(doctor, CONNECTIONS_VARIABLE, connections, sizeof(connections), &readable);
    if (doctor->mps) {
        doctor_found(doctor, "mps", DOCTOR_OK,
                     "on: a call costs what it costs in its own process, and the clients of a GPU share their fate: "
                     "one that is killed while a kernel of it runs on for more than about 2 ms takes all others along, "
                     "mlacatd too, which then starts anew. All share about 100 connections to the GPU, of which "
                     "mlacatd takes %s: if others get OUT_OF_MEMORY at their start, give its unit a lower "
                     "Environment=" CONNECTIONS_VARIABLE,
                     connections);
        return;
    }
    doctor_found(doctor, "mps", DOCTOR_WARN,
                 "off: each hand-over between two processes' kernels is a context switch of the GPU, about 145 us, two "
                 "for each call; but a fault in one process harms no other");
    doctor_advise(doctor, "for speed start nvidia-cuda-mps-control -d as the user of mlacatd and of its clients, then "
                          "restart both");
}

/* False: the daemon looks elsewhere, which is said. */
static bool check_same_folder(struct doctor *doctor, const char *ours)
{
    char theirs[PIPE_BYTES] = PIPE_DEFAULT;
    bool readable;

    doctor_daemon_variable(doctor, PIPE_VARIABLE, theirs, sizeof(theirs), &readable);
    if (!readable || strcmp(theirs, ours) == 0)
        return true;
    doctor_found(doctor, "mps.user", DOCTOR_FAIL, PIPE_VARIABLE " is %s for mlacatd and %s for this process", theirs,
                 ours);
    doctor_advise(doctor, "give mlacatd and its clients the same " PIPE_VARIABLE ", so that one MPS serves both");
    return false;
}

static void check_users(struct doctor *doctor, const char *folder, uid_t owner)
{
    uid_t own = geteuid();

    if (doctor->uid_known && doctor->uid != owner) {
        doctor_found(doctor, "mps.user", DOCTOR_FAIL, "MPS of %s is uid %u's, mlacatd runs as uid %u", folder, owner,
                     doctor->uid);
        doctor_advise(doctor, "MPS serves one user at a time: run mlacatd (User= of its unit) and MPS as the user of "
                              "the model runners");
    } else if (own != owner) {
        doctor_found(doctor, "mps.user", DOCTOR_WARN, "MPS of %s is uid %u's, this process runs as uid %u", folder,
                     owner, own);
        doctor_advise(doctor,
                      "MPS serves one user at a time: run clients as uid %u, and this command too, to see what "
                      "they see",
                      owner);
    } else {
        doctor_found(doctor, "mps.user", DOCTOR_OK, "MPS of %s, this process%s run as uid %u", folder,
                     doctor->uid_known ? " and mlacatd" : " (mlacatd's user is not known)", owner);
    }
}

void doctor_mps(struct doctor *doctor)
{
    const char *named = getenv(PIPE_VARIABLE);
    char folder[PIPE_BYTES];
    struct stat st;

    if (doctor->no_gpu[0] || (doctor->client && !doctor->serves_gpu)) {
        const char *why = doctor->no_gpu[0] ? doctor->no_gpu : "mlacatd serves no GPU";

        doctor_found(doctor, "mps", DOCTOR_SKIPPED, "%s", why);
        doctor_found(doctor, "mps.user", DOCTOR_SKIPPED, "%s", why);
        return;
    }
    check_mode(doctor);
    snprintf(folder, sizeof(folder), "%s", named && named[0] ? named : PIPE_DEFAULT);
    if (!check_same_folder(doctor, folder))
        return;
    if (stat(folder, &st) == 0)
        check_users(doctor, folder, st.st_uid);
    else
        doctor_found(doctor, "mps.user", DOCTOR_SKIPPED, "no MPS control daemon: there is no %s", folder);
}
