/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     nothing.
 * Thread:   submit_check with the stream's lock held: the client's, or its ring's; submit_check_memory with none.
 * Lifetime: -
 * Errors:   INVALID_ARGUMENT, FAILED_PRECONDITION; in `err`.
 */
#ifndef MLACAT_CLIENT_SUBMIT_H
#define MLACAT_CLIENT_SUBMIT_H

#include "client.h"

/* What only the library can see of a call; the daemon checks all the rest. */
enum mlacat_status submit_check(const struct mlacat_stream *stream, const struct mlacat_call *call, struct error *err);

/* Asks the driver whether the call's memory still is what was registered; what was freed is refused from now on, by
 * submit_check. FAILED_PRECONDITION: the driver cannot tell. With no lock held. */
enum mlacat_status submit_check_memory(const struct mlacat_stream *stream, const struct mlacat_call *call,
                                       struct error *err);

#endif
