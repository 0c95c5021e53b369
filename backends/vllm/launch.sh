#!/usr/bin/env bash
# One replica of a pool of README.md:  launch.sh [--print] PROFILE [FLAG...]
# MODEL, HOST and PORT override the profile's; --print shows the command instead of running it.
set -euo pipefail
print=false
if [[ ${1:-} == --print ]]; then print=true; shift; fi
profile=${1:?a profile: short, balanced, throughput, long, draft, big}
shift

llama_8b=meta-llama/Llama-3.1-8B-Instruct
draft=(--speculative-config '{"method": "draft_model", "model": "meta-llama/Llama-3.2-1B-Instruct", "num_speculative_tokens": 4}')
of() { model=$1 gpus=$2 total=$3 sequences=$4 step=$5; shift 5; extra=("$@"); }
case $profile in
#                  model                               GPUs  total  sequences  step budget (tokens)
short)      of "$llama_8b"                          1    4096   64   2048 ;;
balanced)   of "$llama_8b"                          1   16384  128   2048 ;;
throughput) of "$llama_8b"                          1   16384  256   8192 ;;
long)       of "$llama_8b"                          1  131072   16   4096 ;;
draft)      of "$llama_8b"                          1    8192   32   2048  "${draft[@]}" ;;
big)        of meta-llama/Llama-3.3-70B-Instruct    4   16384   64   2048 ;;
*) echo "no such profile: $profile" >&2; exit 2 ;;
esac

command=(
    vllm serve "${MODEL:-$model}" --host "${HOST:-127.0.0.1}" --port "${PORT:-8000}"
    --quantization fp8 --kv-cache-dtype fp8 --gpu-memory-utilization 0.9 --tensor-parallel-size "$gpus"
    --max-model-len "$total" --max-num-seqs "$sequences" --max-num-batched-tokens "$step"
    --max-num-queued-reqs "$((sequences + 8))" --enable-prefix-caching --scheduling-policy fcfs
    --generation-config vllm --enable-prompt-tokens-details "${extra[@]}" "$@"
)
if $print; then printf '%q ' "${command[@]}"; echo; else exec "${command[@]}"; fi
