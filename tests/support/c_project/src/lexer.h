#ifndef LEXER_H
#define LEXER_H

enum token_kind { TOKEN_NUMBER, TOKEN_NAME, TOKEN_SIGN, TOKEN_END };

#define NAME_MAX_BYTES 16

struct lexer {
    const char *rest;
    enum token_kind kind; /* of the current token */
    double number;
    char name[NAME_MAX_BYTES];
    char sign;
};

/* Starts at the first token of a text. */
void lexer_begin(struct lexer *lexer, const char *text);

/* Goes on to the next token. */
void lexer_next(struct lexer *lexer);

#endif
