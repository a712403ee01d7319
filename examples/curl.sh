#!/bin/sh
# What a client asks, with nothing but curl: the model, an answer, a stream, the pool's own status.
set -eu

usage() {
  cat <<'TEXT'
usage: curl.sh [URL]

URL is that of the server, or of the router in front of it (http://127.0.0.1:30000). Environment:
  API_KEY           what --api-key of the server wants, if anything
  PROMPT            the text to go on from
TEXT
}

case "${1:-}" in --help | -h) usage; exit 0 ;; -*) usage >&2; exit 2 ;; esac
url=${1:-http://127.0.0.1:30000}
prompt=${PROMPT:-The import system of Python looks up modules by}

# Fails with curl's own line where the server does not answer, or answers with an error.
ask() {
  path=$1
  shift
  curl --silent --show-error --fail-with-body --max-time 300 --no-buffer \
    --header "Authorization: Bearer ${API_KEY:-none}" \
    --header 'Content-Type: application/json' "$@" "$url$path"
  echo
}

# A JSON string: its backslashes and quotes are escaped, line ends become spaces.
quoted() {
  printf '"%s"' "$(printf '%s' "$1" | tr '\n\t' '  ' | sed 's/[\\"]/\\&/g')"
}

echo "== the model"
ask /v1/models

echo "== an answer, as OpenAI's completions API gives it"
ask /v1/completions --data "{\"model\": \"default\", \"prompt\": $(quoted "$prompt"),
  \"max_tokens\": 8, \"temperature\": 0}"

echo "== the same token by token"
ask /v1/completions --data "{\"model\": \"default\", \"prompt\": $(quoted "$prompt"),
  \"max_tokens\": 4, \"temperature\": 0, \"stream\": true}"

echo "== SGLang's own API, with the log-probability of each token"
ask /generate --data "{\"text\": $(quoted "$prompt"), \"return_logprob\": true,
  \"sampling_params\": {\"max_new_tokens\": 4, \"temperature\": 0}}"

echo "== what the pool does (a router does not have this; ask the server behind it)"
ask /cdsp/status || true
