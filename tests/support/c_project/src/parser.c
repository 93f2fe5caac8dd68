#include "parser.h"

#include <stddef.h>

#include "functions.h"
#include "lexer.h"

static struct node *sum(struct lexer *lexer);
static struct node *factor(struct lexer *lexer);

static int take(struct lexer *lexer, char sign)
{
    if (lexer->kind != TOKEN_SIGN || lexer->sign != sign)
        return 0;
    lexer_next(lexer);
    return 1;
}

static struct node *in_parentheses(struct lexer *lexer)
{
    struct node *inner = take(lexer, '(') ? sum(lexer) : NULL;
    if (inner != NULL && !take(lexer, ')')) {
        node_free(inner);
        return NULL;
    }
    return inner;
}

static struct node *named(struct lexer *lexer)
{
    double value;
    double (*call)(double) = function_of(lexer->name);
    int is_constant = constant_of(lexer->name, &value);
    lexer_next(lexer);
    if (is_constant)
        return node_number(value);
    if (call == NULL)
        return NULL;
    struct node *argument = in_parentheses(lexer);
    return argument == NULL ? NULL : node_call(call, argument);
}

static struct node *joined(char sign, struct node *left, struct node *right)
{
    if (left != NULL && right != NULL)
        return node_binary(sign, left, right);
    node_free(left);
    node_free(right);
    return NULL;
}

static struct node *atom(struct lexer *lexer)
{
    if (lexer->kind == TOKEN_NAME)
        return named(lexer);
    if (lexer->kind != TOKEN_NUMBER)
        return in_parentheses(lexer);
    struct node *number = node_number(lexer->number);
    lexer_next(lexer);
    return number;
}

static struct node *power(struct lexer *lexer)
{
    struct node *base = atom(lexer);
    return take(lexer, '^') ? joined('^', base, factor(lexer)) : base;
}

static struct node *factor(struct lexer *lexer)
{
    if (take(lexer, '-'))
        return joined('-', node_number(0), factor(lexer));
    return power(lexer);
}

static struct node *product(struct lexer *lexer)
{
    struct node *left = factor(lexer);
    for (;;) {
        if (take(lexer, '*'))
            left = joined('*', left, factor(lexer));
        else if (take(lexer, '/'))
            left = joined('/', left, factor(lexer));
        else
            return left;
    }
}

static struct node *sum(struct lexer *lexer)
{
    struct node *left = product(lexer);
    for (;;) {
        if (take(lexer, '+'))
            left = joined('+', left, product(lexer));
        else if (take(lexer, '-'))
            left = joined('-', left, product(lexer));
        else
            return left;
    }
}

struct node *parse(const char *text)
{
    struct lexer lexer;
    lexer_begin(&lexer, text);
    struct node *tree = sum(&lexer);
    if (lexer.kind == TOKEN_END)
        return tree;
    node_free(tree);
    return NULL;
}
