/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The protocol as published: every message reachable from Envelope, with its fields' numbers and types, compared with
 * wire.txt. Adding a field adds a line there; changing or removing a line breaks clients that are already built.
 *
 * Run with the path of wire.txt; with --print it writes what the schema says now.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "mlacat.pb-c.h"

#define MESSAGES_MAX 128
#define TEXT_BYTES 65536

static const char *golden_path;

static const char *type_name(const ProtobufCFieldDescriptor *field)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_INT32:
        return "int32";
    case PROTOBUF_C_TYPE_SINT32:
        return "sint32";
    case PROTOBUF_C_TYPE_INT64:
        return "int64";
    case PROTOBUF_C_TYPE_SINT64:
        return "sint64";
    case PROTOBUF_C_TYPE_UINT32:
        return "uint32";
    case PROTOBUF_C_TYPE_UINT64:
        return "uint64";
    case PROTOBUF_C_TYPE_BOOL:
        return "bool";
    case PROTOBUF_C_TYPE_ENUM:
        return ((const ProtobufCEnumDescriptor *)field->descriptor)->short_name;
    case PROTOBUF_C_TYPE_STRING:
        return "string";
    case PROTOBUF_C_TYPE_BYTES:
        return "bytes";
    case PROTOBUF_C_TYPE_MESSAGE:
        return ((const ProtobufCMessageDescriptor *)field->descriptor)->short_name;
    default:
        return "other";
    }
}

struct walk {
    const ProtobufCMessageDescriptor *seen[MESSAGES_MAX];
    size_t nr;
};

static void visit(struct walk *walk, const ProtobufCMessageDescriptor *message)
{
    for (size_t i = 0; i < walk->nr; i++) {
        if (walk->seen[i] == message)
            return;
    }
    assert_in_range(walk->nr, 0, MESSAGES_MAX - 1);
    walk->seen[walk->nr++] = message;
    for (unsigned i = 0; i < message->n_fields; i++) {
        if (message->fields[i].type == PROTOBUF_C_TYPE_MESSAGE)
            visit(walk, message->fields[i].descriptor);
    }
}

static void write_message(FILE *out, const ProtobufCMessageDescriptor *message)
{
    if (message->n_fields == 0)
        fprintf(out, "%s (empty)\n", message->short_name);
    for (unsigned i = 0; i < message->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &message->fields[i];
        fprintf(out, "%s %u %s%s%s%s\n", message->short_name, field->id,
                field->label == PROTOBUF_C_LABEL_REPEATED ? "repeated " : "", type_name(field),
                (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) ? " oneof " : " ", field->name);
    }
}

static void write_enum(FILE *out, const ProtobufCEnumDescriptor *values)
{
    for (unsigned i = 0; i < values->n_values; i++)
        fprintf(out, "enum %s %d %s\n", values->short_name, values->values[i].value, values->values[i].name);
}

static void write_schema(FILE *out)
{
    struct walk walk = {.nr = 0};
    visit(&walk, &mlacat__v1__envelope__descriptor);
    for (size_t i = 0; i < walk.nr; i++)
        write_message(out, walk.seen[i]);
    write_enum(out, &mlacat__v1__feature__descriptor);
}

static void test_wire_fields_are_as_published(void **state)
{
    (void)state;
    static char is[TEXT_BYTES], published[TEXT_BYTES];
    FILE *out = fmemopen(is, sizeof(is) - 1, "w");
    assert_non_null(out);
    write_schema(out);
    assert_int_equal(fclose(out), 0);

    FILE *golden = fopen(golden_path, "r");
    if (golden == NULL)
        fail_msg("cannot open %s", golden_path);
    size_t length = fread(published, 1, sizeof(published) - 1, golden);
    published[length] = '\0';
    fclose(golden);

    char *rest_is = NULL, *rest_published = NULL;
    char *line = strtok_r(is, "\n", &rest_is);
    char *expected = strtok_r(published, "\n", &rest_published);
    while (line != NULL && expected != NULL) {
        if (strcmp(line, expected) != 0)
            fail_msg("the schema says \"%s\" where wire.txt says \"%s\"", line, expected);
        line = strtok_r(NULL, "\n", &rest_is);
        expected = strtok_r(NULL, "\n", &rest_published);
    }
    if (line != NULL || expected != NULL)
        fail_msg("%s has \"%s\", the other has not", line != NULL ? "the schema" : "wire.txt",
                 line != NULL ? line : expected);
}

int main(int argc, char *argv[])
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s wire.txt | --print\n", argv[0]);
        return 2;
    }
    if (strcmp(argv[1], "--print") == 0) {
        write_schema(stdout);
        return 0;
    }
    golden_path = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wire_fields_are_as_published),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
