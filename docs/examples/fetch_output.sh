#!/bin/sh
# Runs a command that makes a file, and fetches the file, wherever the command ran.
#
#   OCTASKLY_TOKEN=$(octaskly token create --role client) ./fetch_output.sh
set -eu
url=${OCTASKLY_URL:-http://localhost:3000}
authorization="Authorization: Bearer $OCTASKLY_TOKEN"

id=$(curl -sS --fail-with-body -X POST "$url/api/v1/tasks" \
    -H "$authorization" -H "Content-Type: application/json" \
    -d '{"command":"seq 1000 | gzip > numbers.gz","outputs":["numbers.gz"]}' |
    sed -n 's/.*"id":"\([^"]*\)".*/\1/p')

curl -sS --fail-with-body -o /dev/null "$url/api/v1/tasks/$id?wait=60" \
    -H "$authorization"
curl -sS --fail-with-body "$url/api/v1/tasks/$id/outputs/numbers.gz" \
    -H "$authorization" | gzip -dc | tail -n 1
