/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns:     nothing; an intrusive, circular, doubly linked list.
 * Thread:   one thread for a list.
 * Lifetime: a node lives in the object that it links; a node that is on no list points to itself.
 * Errors:   none.
 */
#ifndef MLACAT_BASE_LIST_H
#define MLACAT_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list_node {
    struct list_node *prev;
    struct list_node *next;
};

/* The object of type `type` whose member `member` is `*node`. */
#define LIST_ENTRY(node, type, member) ((type *)(void *)((char *)(node)-offsetof(type, member)))

/* Makes an empty list, or a node that is on no list. */
static inline void list_init(struct list_node *node)
{
    node->prev = node;
    node->next = node;
}

static inline bool list_empty(const struct list_node *head)
{
    return head->next == head;
}

/* Adds at the end of the list. `node` must be on no list. */
static inline void list_append(struct list_node *head, struct list_node *node)
{
    node->prev = head->prev;
    node->next = head;
    head->prev->next = node;
    head->prev = node;
}

/* Adds at the front of the list. `node` must be on no list. */
static inline void list_prepend(struct list_node *head, struct list_node *node)
{
    list_append(head->next, node);
}

/* Takes the node off its list, if it is on one. */
static inline void list_remove(struct list_node *node)
{
    node->prev->next = node->next;
    node->next->prev = node->prev;
    list_init(node);
}

/* Takes the first node off; NULL if there is none. */
static inline struct list_node *list_take(struct list_node *head)
{
    struct list_node *node = head->next;
    if (node == head) {
        return NULL;
    }
    list_remove(node);
    return node;
}

#endif
