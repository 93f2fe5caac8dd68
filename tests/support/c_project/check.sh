#!/bin/sh
# Compares results of the calculator with known ones.
set -eu
while read -r expected expression; do
    given=$(./build/calc "$expression")
    if [ "$given" != "$expected" ]; then
        echo "$expression: $given instead of $expected" >&2
        exit 1
    fi
done <<'END'
7 1 + 2 * 3
9 (1 + 2) * 3
-8 -2 ^ 3
512 2 ^ 3 ^ 2
0.5 1 / 2
3 sqrt(9)
1 cos(0)
6.28319 2 * pi
END
echo "all results are right"
