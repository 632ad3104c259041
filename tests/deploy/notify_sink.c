/* SPDX-License-Identifier: Apache-2.0 */
/*
 * notify_sink PATH: plays the service manager's end of sd_notify(3). Binds a datagram socket at PATH, then prints each
 * line of each datagram until it is terminated.
 */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char *argv[])
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (argc != 2 || strlen(argv[1]) >= sizeof(address.sun_path)) {
        fprintf(stderr, "usage: notify_sink PATH\n");
        return 2;
    }
    memcpy(address.sun_path, argv[1], strlen(argv[1]) + 1);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (const struct sockaddr *)&address, sizeof(address)) != 0) {
        perror(argv[1]);
        return 1;
    }
    for (;;) {
        char text[4096];
        ssize_t length = recv(fd, text, sizeof(text) - 1, 0);
        if (length < 0) {
            perror("recv");
            return 1;
        }
        text[length] = '\0';
        puts(text);
        fflush(stdout);
    }
}
