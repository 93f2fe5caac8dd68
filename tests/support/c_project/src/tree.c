#include "tree.h"

#include <stdio.h>
#include <stdlib.h>

static struct node *node_new(enum node_kind kind)
{
    struct node *node = calloc(1, sizeof *node);
    if (node == NULL) {
        fputs("calc: out of memory\n", stderr);
        exit(2);
    }
    node->kind = kind;
    return node;
}

struct node *node_number(double number)
{
    struct node *node = node_new(NODE_NUMBER);
    node->number = number;
    return node;
}

struct node *node_call(double (*call)(double), struct node *argument)
{
    struct node *node = node_new(NODE_CALL);
    node->call = call;
    node->left = argument;
    return node;
}

struct node *node_binary(char sign, struct node *left, struct node *right)
{
    struct node *node = node_new(NODE_BINARY);
    node->sign = sign;
    node->left = left;
    node->right = right;
    return node;
}

void node_free(struct node *node)
{
    if (node == NULL)
        return;
    node_free(node->left);
    node_free(node->right);
    free(node);
}
