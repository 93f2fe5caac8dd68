#ifndef TREE_H
#define TREE_H

enum node_kind { NODE_NUMBER, NODE_CALL, NODE_BINARY };

struct node {
    enum node_kind kind;
    double number;         /* of NODE_NUMBER */
    double (*call)(double); /* of NODE_CALL */
    char sign;             /* of NODE_BINARY */
    struct node *left;     /* also the argument of NODE_CALL */
    struct node *right;
};

struct node *node_number(double number);
struct node *node_call(double (*call)(double), struct node *argument);
struct node *node_binary(char sign, struct node *left, struct node *right);
void node_free(struct node *node);

#endif
