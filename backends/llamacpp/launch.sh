#!/usr/bin/env bash
# One replica of a pool of README.md:  launch.sh [--print] PROFILE [FLAG...]
# MODEL, DRAFT, NAME, HOST and PORT override the profile's; --print shows the command instead of running it.
set -euo pipefail
print=false
if [[ ${1:-} == --print ]]; then print=true; shift; fi
profile=${1:?a profile: short, balanced, throughput, long, draft}
shift

draft=(
    --spec-type draft-simple --spec-draft-n-max 4
    --spec-draft-model "${DRAFT:-llama-3.2-1b-instruct-q8_0.gguf}"
)
of() { total=$1 slots=$2 step=$3; shift 3; extra=("$@"); }
case $profile in
#              total  slots  step budget (tokens)
short)      of   4096  16   512 ;;
balanced)   of  16384   8   512 ;;
throughput) of   4096  32  2048 ;;
long)       of  65536   2  1024 ;;
draft)      of   8192   4   512  "${draft[@]}" ;;
*) echo "no such profile: $profile" >&2; exit 2 ;;
esac

command=(
    llama-server --model "${MODEL:-llama-3.1-8b-instruct-q8_0.gguf}" --alias "${NAME:-llama3-8b}"
    --host "${HOST:-127.0.0.1}" --port "${PORT:-8080}"
    --parallel "$slots" --ctx-size "$((slots * total))" --no-kv-unified
    --batch-size "$step" --ubatch-size 512 --metrics "${extra[@]}" "$@"
)
if $print; then printf '%q ' "${command[@]}"; echo; else exec "${command[@]}"; fi
