/* SPDX-License-Identifier: Apache-2.0 */
#include "event.h"

#include <stdlib.h>
#include <string.h>

#include "cuda_driver.h"
#include "cuda_export.h"
#include "reconnect.h"
#include "request.h"

enum mlacat_status event_check_server(const struct server *server, struct error *err)
{
    if (!(server->features & MLACAT__V1__FEATURE__FEATURE_EVENTS)) {
        return error_set(err, MLACAT_UNIMPLEMENTED,
                         "the daemon (version %s) knows no events; update it, or submit when the operands are ready",
                         server->info.version);
    }
    return MLACAT_OK;
}

void event_discard(struct mlacat_event *event)
{
    free(event);
}

/* The driver does not tell an event's device, but shares only events of the current context. */
static enum mlacat_status export_event(const struct cuda_driver *cuda, void *cu_event, struct mlacat_event *event)
{
    int device = 0;
    int result = cuda->cuCtxGetDevice(&device);
    if (result != CUDA_RESULT_OK) {
        return error_fail(MLACAT_FAILED_PRECONDITION,
                          "this thread has no CUDA context (cuCtxGetDevice: %d); call cudaSetDevice with the device of "
                          "the event",
                          result);
    }
    result = cuda_driver_name_device(cuda, device, event->device);
    if (result != CUDA_RESULT_OK) {
        return error_fail(MLACAT_INTERNAL, "the CUDA driver failed: cuDeviceGetUuid: %d", result);
    }
    result = cuda->cuIpcGetEventHandle(event->handle, cu_event);
    if (result != CUDA_RESULT_OK) {
        return error_fail(MLACAT_INVALID_ARGUMENT,
                          "the event at %p cannot be shared (cuIpcGetEventHandle: %d); make it with "
                          "CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING, on the device that is current here",
                          cu_event, result);
    }
    return MLACAT_OK;
}

/* Tells the daemon, and puts the event on its client's list. With the lock. */
static enum mlacat_status announce(struct mlacat_event *event, struct error *err)
{
    struct mlacat_client *client = event->client;
    struct message_register_event request;
    message *reply;
    if (reconnect_ready(client, true, err) != MLACAT_OK || event_check_server(&client->server, err) != MLACAT_OK) {
        return err->code;
    }
    message_register_event(&request, event);
    if (request_make(client, &request.envelope, NULL, REQUEST_NEW_WORK, MLACAT__V1__ENVELOPE__BODY_EVENT_REGISTERED,
                     &reply, err) != MLACAT_OK) {
        return err->code;
    }
    event->ref = message_event_ref(reply->event_registered->event);
    message_free(reply);
    TAILQ_INSERT_TAIL(&client->events, event, link);
    return MLACAT_OK;
}

static enum mlacat_status share(void *cu_event, struct mlacat_event *event)
{
    const struct cuda_driver *cuda;
    struct cuda_asking asking;
    enum mlacat_status status = cuda_driver(&cuda);
    if (status != MLACAT_OK) {
        return status;
    }
    cuda_asking_begin(&asking, cuda);
    status = export_event(cuda, cu_event, event);
    cuda_asking_end(&asking);
    if (status != MLACAT_OK) {
        return status;
    }
    struct error err;
    pthread_mutex_lock(&event->client->lock);
    status = announce(event, &err);
    pthread_mutex_unlock(&event->client->lock);
    return status == MLACAT_OK ? MLACAT_OK : error_raise(&err);
}

enum mlacat_status mlacat_event_register(struct mlacat_client *client, void *cu_event, struct mlacat_event **event)
{
    enum mlacat_status status = client_check(client);
    if (status != MLACAT_OK) {
        return status;
    }
    if (event == NULL || cu_event == NULL) {
        return error_fail(MLACAT_INVALID_ARGUMENT, "%s is NULL; give %s", event == NULL ? "event" : "cu_event",
                          event == NULL ? "the address of a pointer" : "a CUevent");
    }
    *event = NULL;
    struct mlacat_event *made = calloc(1, sizeof(*made));
    if (made == NULL) {
        return error_fail(MLACAT_RESOURCE_EXHAUSTED, "no memory for the handle of an event");
    }
    made->client = client;
    status = share(cu_event, made);
    if (status != MLACAT_OK) {
        event_discard(made);
        return status;
    }
    *event = made;
    return MLACAT_OK;
}

void mlacat_event_release(struct mlacat_event *event)
{
    if (event == NULL || client_is_forked(event->client)) {
        return;
    }
    struct mlacat_client *client = event->client;
    pthread_mutex_lock(&client->lock);
    reconnect_settle(client);
    /* Off the list first: should the connection end meanwhile, the next one must not register it again. */
    TAILQ_REMOVE(&client->events, event, link);
    if (client->fd >= 0 && event->broken.code == MLACAT_OK) {
        struct error ignored;
        message request = MLACAT__V1__ENVELOPE__INIT;
        Mlacat__V1__UnregisterEvent body = MLACAT__V1__UNREGISTER_EVENT__INIT;
        Mlacat__V1__EventRef ref = MLACAT__V1__EVENT_REF__INIT;
        request.body_case = MLACAT__V1__ENVELOPE__BODY_UNREGISTER_EVENT;
        request.unregister_event = &body;
        body.event = &ref;
        ref.id = event->ref.id;
        ref.generation = event->ref.generation;
        /* It fails only together with the connection, and then the daemon has let go of the event anyway. */
        (void)request_make(client, &request, NULL, REQUEST_THIS_CONNECTION, MLACAT__V1__ENVELOPE__BODY_ANSWER, NULL,
                           &ignored);
    }
    pthread_mutex_unlock(&client->lock);
    event_discard(event);
}
