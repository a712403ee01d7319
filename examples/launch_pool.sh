#!/bin/sh
# A pool of prefill instances, a stock decode server and SGLang's router on one CUDA machine.
# All three end with this script (Ctrl-C).
set -eu

usage() {
  cat <<'TEXT'
usage: launch_pool.sh MODEL [FLAG...]

FLAGs go to the prefill server, for example --cdsp-allow-request-plans. Environment:
  INSTANCES         prefill instances in the pool (7)
  TP_SIZE           GPUs of one instance, and of decode (1)
  TRANSFER          KV to decode goes over nixl or mooncake (nixl)
  PAGE_SIZE         tokens of a KV page, alike on both servers (64)
  PORT              where the router listens (30000)
GPUs 0 to INSTANCES * TP_SIZE - 1 prefill, the TP_SIZE after them decode.
TEXT
}

case "${1:-}" in
  --help | -h) usage; exit 0 ;;
  "") usage >&2; exit 2 ;;
esac
model=$1
shift
instances=${INSTANCES:-7}
tp=${TP_SIZE:-1}
transfer=${TRANSFER:-nixl}
page_size=${PAGE_SIZE:-64}
port=${PORT:-30000}
prefill_port=$((port + 1))
decode_port=$((port + 2))
bootstrap_port=$((port + 3))

trap 'trap - EXIT INT TERM; kill 0' EXIT INT TERM

python -m sglang.launch_server --model-path "$model" --port "$prefill_port" \
  --cdsp --dp-size "$instances" --tp-size "$tp" --page-size "$page_size" \
  --disaggregation-mode prefill --disaggregation-bootstrap-port "$bootstrap_port" \
  --disaggregation-transfer-backend "$transfer" "$@" &

python -m sglang.launch_server --model-path "$model" --port "$decode_port" \
  --tp-size "$tp" --page-size "$page_size" --base-gpu-id $((instances * tp)) \
  --disaggregation-mode decode --disaggregation-transfer-backend "$transfer" &

python -m sglang_router.launch_router --pd-disaggregation --mini-lb --port "$port" \
  --prefill "http://127.0.0.1:$prefill_port" "$bootstrap_port" \
  --decode "http://127.0.0.1:$decode_port" &

echo "the router will answer at http://127.0.0.1:$port when all three are up"
wait
