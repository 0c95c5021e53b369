#!/usr/bin/env bash
# One replica of a pool of README.md:  launch.sh [--print] PROFILE [FLAG...]
# MODEL, HOST and PORT override the profile's; --print shows the command instead of running it.
set -euo pipefail
print=false
if [[ ${1:-} == --print ]]; then print=true; shift; fi
profile=${1:?a profile: short, balanced, throughput, long, draft}
shift

of() { input=$1 total=$2 concurrent=$3 step=$4; shift 4; extra=("$@"); }
case $profile in
#              input   total  requests  step budget (tokens)
short)      of   3584    4096   72   2048 ;;
balanced)   of  12288   16384  136   2048 ;;
throughput) of  12288   16384  264   8192 ;;
long)       of 126976  131072   24   4096  --payload-limit 16000000 ;;
draft)      of   7168    8192   40   2048  --speculate 3 ;;
*) echo "no such profile: $profile" >&2; exit 2 ;;
esac

command=(
    text-generation-launcher --model-id "${MODEL:-meta-llama/Llama-3.1-8B-Instruct}"
    --hostname "${HOST:-127.0.0.1}" --port "${PORT:-8080}"
    --quantize fp8 --kv-cache-dtype fp8_e4m3fn --cuda-memory-fraction 0.9
    --max-input-tokens "$input" --max-total-tokens "$total" --max-concurrent-requests "$concurrent"
    --max-batch-prefill-tokens "$step" --usage-stats off "${extra[@]}" "$@"
)
if $print; then printf '%q ' "${command[@]}"; echo; else exec "${command[@]}"; fi
