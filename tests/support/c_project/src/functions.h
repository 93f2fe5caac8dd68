#ifndef FUNCTIONS_H
#define FUNCTIONS_H

/* Returns the function of a name, or NULL. */
double (*function_of(const char *name))(double);

/* Puts the constant of a name into `value`; returns 0 if there is none. */
int constant_of(const char *name, double *value);

#endif
