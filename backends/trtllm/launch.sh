#!/usr/bin/env bash
# One replica of a pool of README.md:  launch.sh [--print] PROFILE [FLAG...]
# MODEL, HOST and PORT override the profile's; --print shows the command instead of running it.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
print=false
if [[ ${1:-} == --print ]]; then print=true; shift; fi
profile=${1:?a profile: short, balanced, throughput, long, draft, big, slice}
shift

llama_8b=nvidia/Llama-3.1-8B-Instruct-FP8
llama_70b=nvidia/Llama-3.3-70B-Instruct-FP8

of() { model=$1 gpus=$2 total=$3 sequences=$4 step=$5; }
case $profile in
#                  model         GPUs  total  sequences  step budget (tokens)
short)      of "$llama_8b"   1    4096   64   2048 ;;
balanced)   of "$llama_8b"   1   16384  128   2048 ;;
throughput) of "$llama_8b"   1   16384  256   8192 ;;
long)       of "$llama_8b"   1  131072   16   4096 ;;
draft)      of "$llama_8b"   1    8192   32   2048 ;;
big)        of "$llama_70b"  4   16384   64   2048 ;;
slice)      of "$llama_8b"   1    8192   32   1024 ;;
*) echo "no such profile: $profile" >&2; exit 2 ;;
esac

command=(
    trtllm-serve "${MODEL:-$model}" --host "${HOST:-127.0.0.1}" --port "${PORT:-8000}"
    --tp_size "$gpus" --max_seq_len "$total" --max_batch_size "$sequences"
    --max_num_tokens "$step" --enable_chunked_prefill
    --extra_llm_api_options "$here/options/$profile.yaml" "$@"
)
if $print; then printf '%q ' "${command[@]}"; echo; else exec "${command[@]}"; fi
