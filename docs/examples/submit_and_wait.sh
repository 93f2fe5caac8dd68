#!/bin/sh
# Submits a command with curl, waits for its end, and prints the task as JSON.
#
#   OCTASKLY_TOKEN=$(octaskly token create --role client) ./submit_and_wait.sh
set -eu
url=${OCTASKLY_URL:-http://localhost:3000}
authorization="Authorization: Bearer $OCTASKLY_TOKEN"

id=$(curl -sS --fail-with-body -X POST "$url/api/v1/tasks" \
    -H "$authorization" -H "Content-Type: application/json" \
    -d '{"command":"echo hello from $(hostname)","timeout":60}' |
    sed -n 's/.*"id":"\([^"]*\)".*/\1/p')

# The answer comes when the task has ended, or after 60 seconds as it is then.
curl -sS --fail-with-body "$url/api/v1/tasks/$id?wait=60" -H "$authorization"
echo
