#ifndef PARSER_H
#define PARSER_H

#include "tree.h"

/* Returns the tree of an expression, or NULL if it is none. */
struct node *parse(const char *text);

#endif
