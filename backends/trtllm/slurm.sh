#!/usr/bin/env bash
#SBATCH --job-name=trtllm-two-nodes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --output=trtllm-%j.log
# One replica over 16 GPUs of two nodes: a task for each GPU; rank 0 alone opens the port.
# The --container-* flags are those of Slurm's pyxis plugin.  sbatch slurm.sh MODEL
set -euo pipefail
model=${1:?a model that needs 16 GPUs}
recipes=${RECIPES:?this folder, as an absolute path that both nodes see}
image=${IMAGE:-nvcr.io/nvidia/tensorrt-llm/release:1.2.1}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
echo "replicas: [{id: big-$SLURM_JOB_ID, url: \"http://$head:8000\"}]"

export HF_HOME=/cache # within the container
srun --mpi=pmix --container-image="$image" --container-mounts="$recipes:$recipes,$HOME/.cache/huggingface:/cache" \
    trtllm-llmapi-launch trtllm-serve "$model" --host 0.0.0.0 --port 8000 --tp_size 16 --gpus_per_node 8 \
    --max_seq_len 16384 --max_batch_size 64 --max_num_tokens 2048 --enable_chunked_prefill \
    --extra_llm_api_options "$recipes/options/big.yaml"
