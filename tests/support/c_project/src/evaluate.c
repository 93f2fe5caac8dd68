#include "evaluate.h"

#include <math.h>

static double binary(char sign, double left, double right)
{
    switch (sign) {
    case '+':
        return left + right;
    case '-':
        return left - right;
    case '*':
        return left * right;
    case '/':
        return left / right;
    default:
        return pow(left, right);
    }
}

double evaluate(const struct node *node)
{
    switch (node->kind) {
    case NODE_NUMBER:
        return node->number;
    case NODE_CALL:
        return node->call(evaluate(node->left));
    default:
        return binary(node->sign, evaluate(node->left), evaluate(node->right));
    }
}
