/* calc: prints the value of each expression that is given as an argument. */
#include <stdio.h>

#include "evaluate.h"
#include "parser.h"

int main(int argc, char **argv)
{
    int status = 0;
    for (int n = 1; n < argc; n++) {
        struct node *tree = parse(argv[n]);
        if (tree == NULL) {
            fprintf(stderr, "calc: not an expression: %s\n", argv[n]);
            status = 1;
            continue;
        }
        printf("%g\n", evaluate(tree));
        node_free(tree);
    }
    return status;
}
