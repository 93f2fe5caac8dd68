#!/bin/sh
# Submits a command with curl, waits for its end, and prints the task as JSON.
#
#   ./submit_and_wait.sh    on a node, over the socket of its agent
#   OCTASKLY_URL=https://pi4.local:3443 OCTASKLY_TOKEN=... ./submit_and_wait.sh
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
    -d '{"command":"echo hello from $(hostname)","timeout":60}' |
    sed -n 's/.*"id":"\([^"]*\)".*/\1/p')

# The answer comes when the task has ended, or after 60 seconds as it is then.
ask "$url/api/v1/tasks/$id?wait=60"
echo
