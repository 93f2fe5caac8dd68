#ifndef EVALUATE_H
#define EVALUATE_H

#include "tree.h"

double evaluate(const struct node *node);

#endif
