"""A real `vllm serve` on loopback, with a llama of random weights.

It is not installed here. `HEADGATE_VLLM` names the program, or it is found on PATH; it needs no GPU where it
was built for CPUs (docs/engines.md says which package).
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from safetensors.numpy import save_file

from backends.prometheus import read_samples
from tests.end_to_end.world import TOKENIZER
from tests.real_engines.asking import serving

__all__ = ["CONTEXT", "MODEL", "QUEUED", "SEQUENCES", "VllmServer", "program", "running"]

MODEL = "tiny"
CONTEXT = 4096
SEQUENCES = 2
"""Run at once."""
QUEUED = 4
"""Run and wait at once; one more is refused."""
READY_SECONDS = 180.0

_WIDTH, _WIDE, _KV, _VOCABULARY, _LAYERS = 128, 256, 64, 4096, 2
_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32",
    "vocab_size": _VOCABULARY, "hidden_size": _WIDTH, "intermediate_size": _WIDE,
    "num_hidden_layers": _LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6, "rope_theta": 500000.0, "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 4091, "eos_token_id": 4095,
}  # fmt: skip
_LAYER: dict[str, tuple[int, ...]] = {
    "self_attn.q_proj": (_WIDTH, _WIDTH), "self_attn.o_proj": (_WIDTH, _WIDTH),
    "self_attn.k_proj": (_KV, _WIDTH), "self_attn.v_proj": (_KV, _WIDTH),
    "mlp.gate_proj": (_WIDE, _WIDTH), "mlp.up_proj": (_WIDE, _WIDTH), "mlp.down_proj": (_WIDTH, _WIDE),
    "input_layernorm": (_WIDTH,), "post_attention_layernorm": (_WIDTH,),
}  # fmt: skip
_SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens": (_VOCABULARY, _WIDTH),
    "lm_head": (_VOCABULARY, _WIDTH),
    "model.norm": (_WIDTH,),
} | {f"model.layers.{layer}.{name}": shape for layer in range(_LAYERS) for name, shape in _LAYER.items()}


@dataclass(frozen=True, slots=True)
class VllmServer:
    url: str

    def metric(self, name: str) -> float:
        """The sum of `vllm:NAME` over its labels."""
        page = httpx.get(f"{self.url}/metrics", trust_env=False).content
        return read_samples(page).sum(f"vllm:{name}") or 0.0

    def running(self) -> int:
        return int(self.metric("num_requests_running"))

    def waiting(self) -> int:
        return int(self.metric("num_requests_waiting"))


def program() -> str | None:
    """The program to run; None where there is none."""
    return shutil.which(os.environ.get("HEADGATE_VLLM") or "vllm")


@contextlib.contextmanager
def running(directory: Path) -> Iterator[VllmServer]:
    """A server with its model loaded. Call `program` first."""
    found = program()
    assert found is not None
    model = directory / "model"
    _write_model(model)
    env = {
        **os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def command(port: int) -> list[str]:
        return [
            found, "serve", str(model), "--served-model-name", MODEL, "--host", "127.0.0.1",
            "--port", str(port), "--max-model-len", str(CONTEXT), "--max-num-seqs", str(SEQUENCES),
            "--max-num-batched-tokens", "2048", "--max-num-queued-reqs", str(QUEUED),
            "--enable-prefix-caching", "--enforce-eager", "--scheduling-policy", "priority",
            "--generation-config", "vllm", "--enable-prompt-tokens-details",
            "--enable-auto-tool-choice", "--tool-call-parser", "pythonic",
            "--structured-outputs-config", '{"backend": "guidance", "disable_any_whitespace": true}',
        ]  # fmt: skip

    with serving(command, directory / "server.log", ready_seconds=READY_SECONDS, env=env) as url:
        yield VllmServer(url)


def _write_model(directory: Path) -> None:
    shutil.copytree(TOKENIZER, directory)
    (directory / "config.json").write_text(json.dumps(_CONFIG))
    file, tensors = directory / "model.safetensors", {}
    random = np.random.default_rng(7)
    for name, shape in _SHAPES.items():
        norm = name.endswith("norm")
        tensors[f"{name}.weight"] = np.ones(shape, np.float32) if norm else random.normal(0, 0.05, shape)
    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, file, {"format": "pt"})
