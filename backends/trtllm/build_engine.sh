#!/usr/bin/env bash
# A TensorRT engine in FP8 for the pool triton-classic:  build_engine.sh [--print] HF_MODEL_DIR OUT_DIR
# TensorRT-LLM up to 1.2; later releases have no engines. TRTLLM: a checkout of the same release; TP: GPUs.
set -euo pipefail
print=false
if [[ ${1:-} == --print ]]; then print=true; shift; fi
model=${1:?the checkpoint, a directory}
out=${2:?where to put checkpoint/ and engine/}
trtllm=${TRTLLM:-/app/tensorrt_llm}
run() { if $print; then printf '%q ' "$@"; echo; else "$@"; fi; }

# FP8 is made here, from the weights and a few hundred samples; trtllm-build has no flag for it.
run python3 "$trtllm/examples/quantization/quantize.py" --model_dir "$model" --output_dir "$out/checkpoint" \
    --dtype auto --qformat fp8 --kv_cache_dtype fp8 --calib_size 512 --tp_size "${TP:-1}"
# max_input_len is 1024 unless told. Paged context attention is what chunked context and reuse need.
run trtllm-build --checkpoint_dir "$out/checkpoint" --output_dir "$out/engine" \
    --max_batch_size 64 --max_seq_len 4096 --max_input_len 4096 --max_num_tokens 2048 \
    --use_paged_context_fmha enable --use_fp8_context_fmha enable --workers "${TP:-1}"
