#!/usr/bin/env bash
# One replica of a pool of README.md:  launch.sh [--print | --prepare] PROFILE REPOSITORY [FLAG...]
# Makes the model repository in the folder REPOSITORY (which must not exist), then starts Triton on it.
# TRTLLM: a checkout of TensorRT-LLM of the image's release. MODEL, TP (GPUs), HTTP_PORT, GRPC_PORT, METRICS_PORT;
# for `classic` ENGINE_DIR and TOKENIZER_DIR. --print shows what would be run and written, --prepare starts nothing.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
print=false start=true
if [[ ${1:-} == --print ]]; then print=true; shift; fi
if [[ ${1:-} == --prepare ]]; then start=false; shift; fi
profile=${1:?a profile: short, balanced, throughput, long, draft, classic}
repository=${2:?where to make the model repository}
shift 2
trtllm=${TRTLLM:-/app/tensorrt_llm}
run() { if $print; then printf '%q ' "$@"; echo; else "$@"; fi; }
write() { if $print; then echo "--- $1"; cat; echo "---"; else cat >"$1"; fi; }
fill() { run python3 "$trtllm/triton_backend/tools/fill_template.py" -i "$repository/$1/config.pbtxt" "$2"; }

pytorch() { # total, sequences, step budget: the same keys as trtllm-serve's options, and Triton's own
    run cp -R "$trtllm/triton_backend/all_models/llmapi" "$repository"
    {
        echo "model: ${MODEL:-nvidia/Llama-3.1-8B-Instruct-FP8}"
        echo "backend: pytorch"
        echo "tensor_parallel_size: ${TP:-1}"
        printf 'max_seq_len: %s\nmax_batch_size: %s\nmax_num_tokens: %s\n' "$@"
        echo "enable_chunked_prefill: true"
        grep -v '^#' "$here/../trtllm/options/$profile.yaml"
        echo "triton_config: {max_batch_size: 0, decoupled: true}" # decoupled: streams
    } | write "$repository/tensorrt_llm/1/model.yaml"
}

engine() { # total (of the engine alone), sequences, step budget (likewise)
    local engine=${ENGINE_DIR:?what build_engine.sh made} tokenizer=${TOKENIZER_DIR:?its tokenizer}
    local sequences=$2 batch="triton_max_batch_size:$2"
    run cp -R "$trtllm/triton_backend/all_models/inflight_batcher_llm" "$repository"
    fill preprocessing "tokenizer_dir:$tokenizer,$batch,preprocessing_instance_count:4,add_special_tokens:False,max_queue_delay_microseconds:0,max_queue_size:0"
    fill postprocessing "tokenizer_dir:$tokenizer,$batch,postprocessing_instance_count:4,skip_special_tokens:True"
    fill ensemble "$batch,logits_datatype:TYPE_FP32"
    # An instance of BLS serves one request at a time: as many as sequences.
    fill tensorrt_llm_bls "$batch,decoupled_mode:True,bls_instance_count:$sequences,accumulate_tokens:True,tensorrt_llm_model_name:tensorrt_llm,logits_datatype:TYPE_FP32,prompt_embedding_table_data_type:TYPE_FP16"
    fill tensorrt_llm "triton_backend:tensorrtllm,$batch,decoupled_mode:True,engine_dir:$engine,batching_strategy:inflight_fused_batching,batch_scheduler_policy:guaranteed_no_evict,enable_chunked_context:True,enable_kv_cache_reuse:True,kv_cache_free_gpu_mem_fraction:0.9,exclude_input_in_output:True,max_queue_delay_microseconds:0,max_queue_size:$((sequences + 8)),max_beam_width:1,encoder_input_features_data_type:TYPE_FP16,logits_datatype:TYPE_FP32,prompt_embedding_table_data_type:TYPE_FP16"
}

case $profile in
#                       total  sequences  step budget
short)      pytorch   4096   64   2048 ;;
balanced)   pytorch  16384  128   2048 ;;
throughput) pytorch  16384  256   8192 ;;
long)       pytorch 131072   16   4096 ;;
draft)      pytorch   8192   32   2048 ;;
classic)    engine    4096   64   2048 ;;
*) echo "no such profile: $profile" >&2; exit 2 ;;
esac

$start || exit 0
run python3 "$trtllm/triton_backend/scripts/launch_triton_server.py" --model_repo="$repository" --world_size 1 \
    --http_port "${HTTP_PORT:-8000}" --grpc_port "${GRPC_PORT:-8001}" --metrics_port "${METRICS_PORT:-8002}" "$@"
