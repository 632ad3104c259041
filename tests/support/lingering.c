/* SPDX-License-Identifier: Apache-2.0 */
#include "lingering.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

static bool connect_ends(struct lingering *made)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr *any = (struct sockaddr *)&address;
    socklen_t size = sizeof(address);
    made->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    made->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (made->listener < 0 || made->fd < 0 || bind(made->listener, any, size) != 0 || listen(made->listener, 1) != 0 ||
        getsockname(made->listener, any, &size) != 0 || connect(made->fd, any, size) != 0) {
        return false;
    }
    made->peer = accept4(made->listener, NULL, NULL, SOCK_CLOEXEC);
    return made->peer >= 0;
}

bool lingering_make(struct lingering *made)
{
    static const char block[65536];
    struct linger linger = {.l_onoff = 1, .l_linger = LINGERING_SECONDS};
    *made = (struct lingering){-1, -1, -1};
    if (!connect_ends(made)) {
        return false;
    }
    while (send(made->fd, block, sizeof(block), MSG_DONTWAIT) > 0) {
    }
    return errno == EAGAIN && setsockopt(made->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)) == 0;
}

/* A peer that goes with bytes unread resets the connection: nothing is left to linger for. */
void lingering_release(struct lingering *lingering)
{
    close(lingering->peer);
    close(lingering->listener);
}
