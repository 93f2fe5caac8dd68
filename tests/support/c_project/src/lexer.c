#include "lexer.h"

#include <ctype.h>
#include <stdlib.h>

void lexer_begin(struct lexer *lexer, const char *text)
{
    lexer->rest = text;
    lexer_next(lexer);
}

static void read_name(struct lexer *lexer)
{
    int length = 0;
    while (isalnum((unsigned char)*lexer->rest)) {
        if (length < NAME_MAX_BYTES - 1)
            lexer->name[length++] = *lexer->rest;
        lexer->rest++;
    }
    lexer->name[length] = '\0';
}

void lexer_next(struct lexer *lexer)
{
    while (isspace((unsigned char)*lexer->rest))
        lexer->rest++;
    if (*lexer->rest == '\0') {
        lexer->kind = TOKEN_END;
    } else if (isdigit((unsigned char)*lexer->rest) || *lexer->rest == '.') {
        char *end;
        lexer->kind = TOKEN_NUMBER;
        lexer->number = strtod(lexer->rest, &end);
        lexer->rest = end > lexer->rest ? end : lexer->rest + 1;
    } else if (isalpha((unsigned char)*lexer->rest)) {
        lexer->kind = TOKEN_NAME;
        read_name(lexer);
    } else {
        lexer->kind = TOKEN_SIGN;
        lexer->sign = *lexer->rest++;
    }
}
