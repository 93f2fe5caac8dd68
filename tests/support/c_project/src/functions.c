#include "functions.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

static const struct {
    const char *name;
    double (*call)(double);
} functions[] = {
    {"abs", fabs}, {"cos", cos},   {"exp", exp}, {"floor", floor},
    {"log", log},  {"sin", sin},   {"tan", tan}, {"sqrt", sqrt},
};

static const struct {
    const char *name;
    double value;
} constants[] = {{"e", 2.71828182845904523536}, {"pi", 3.14159265358979323846}};

double (*function_of(const char *name))(double)
{
    for (size_t n = 0; n < sizeof functions / sizeof *functions; n++)
        if (strcmp(functions[n].name, name) == 0)
            return functions[n].call;
    return NULL;
}

int constant_of(const char *name, double *value)
{
    for (size_t n = 0; n < sizeof constants / sizeof *constants; n++)
        if (strcmp(constants[n].name, name) == 0) {
            *value = constants[n].value;
            return 1;
        }
    return 0;
}
