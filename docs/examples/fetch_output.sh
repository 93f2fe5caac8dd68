#!/bin/sh
# Runs a command that makes a file, and fetches the file, wherever the command ran.
#
#   ./fetch_output.sh    on a node, over the socket of its agent
#   OCTASKLY_URL=https://pi4.local:3443 OCTASKLY_TOKEN=... ./fetch_output.sh
set -eu
url=${OCTASKLY_URL:-http://localhost}

ask() {
    if [ -n "${OCTASKLY_URL:-}" ]; then
        curl -sS --fail-with-body -H "Authorization: Bearer $OCTASKLY_TOKEN" "$@"
    else
        curl -sS --fail-with-body --unix-socket "$(octaskly config socket)" "$@"
    fi
}

id=$(ask "$url/api/v1/tasks" -H "Content-Type: application/json" \
    -d '{"command":"seq 1000 | gzip > numbers.gz","outputs":["numbers.gz"]}' |
    sed -n 's/.*"id":"\([^"]*\)".*/\1/p')

ask -o /dev/null "$url/api/v1/tasks/$id?wait=60"
ask "$url/api/v1/tasks/$id/outputs/numbers.gz" | gzip -dc | tail -n 1
