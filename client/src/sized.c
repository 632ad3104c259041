/* SPDX-License-Identifier: Apache-2.0 */
#include "sized.h"

#include <string.h>

#define SIZE_MAX_SANE 4096

static size_t size_of(const void *object)
{
    size_t size;
    memcpy(&size, object, sizeof(size));
    return size;
}

static enum mlacat_status check(const void *object, size_t first_size, const char *name, struct error *err)
{
    if (object == NULL) {
        return error_set(err, MLACAT_INVALID_ARGUMENT, "struct %s is NULL; give the address of one", name);
    }
    size_t size = size_of(object);
    if (size < first_size || size > SIZE_MAX_SANE) {
        return error_set(err, MLACAT_INVALID_ARGUMENT,
                         "size of struct %s is %zu, at least %zu expected; set it to its sizeof", name, size,
                         first_size);
    }
    return MLACAT_OK;
}

enum mlacat_status sized_check(const void *to, size_t first_size, const char *name)
{
    struct error err;
    return check(to, first_size, name, &err) == MLACAT_OK ? MLACAT_OK : error_raise(&err);
}

enum mlacat_status sized_read(void *to, size_t size, const void *from, size_t first_size, const char *name,
                              struct error *err)
{
    if (check(from, first_size, name, err) != MLACAT_OK) {
        return err->code;
    }
    size_t given = size_of(from);
    for (size_t i = size; i < given; i++) {
        if (((const unsigned char *)from)[i] != 0) {
            return error_set(err, MLACAT_INVALID_ARGUMENT,
                             "struct %s of %zu bytes uses members that version %s of the library does not know; "
                             "install a newer libmlacat",
                             name, given, mlacat_version());
        }
    }
    memset(to, 0, size);
    memcpy(to, from, given < size ? given : size);
    return MLACAT_OK;
}

void sized_write(void *to, const void *from, size_t size)
{
    size_t room = size_of(to);
    size_t kept = room < size ? room : size;
    memcpy((char *)to + sizeof(size_t), (const char *)from + sizeof(size_t), kept - sizeof(size_t));
    memset((char *)to + kept, 0, room - kept);
}
