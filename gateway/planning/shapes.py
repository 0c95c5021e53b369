"""What a model weighs and what its cache takes, from its Hugging Face `config.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ModelShape", "ShapeUnknown", "read_shape"]

DTYPE_BYTES = {
    "float32": 4.0, "float": 4.0, "bfloat16": 2.0, "float16": 2.0, "half": 2.0, "float8_e4m3fn": 1.0,
    "float8_e5m2": 1.0, "int8": 1.0,
}  # fmt: skip


class ShapeUnknown(ValueError):
    """A config.json that does not tell what is needed; the message names what."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    name: str
    layers: int
    heads: int
    kv_heads: int
    """As `heads`, where a model has no grouped-query attention."""
    head_dim: int
    dtype_bytes: float
    parameters: int | None
    """Counted from the sizes of the matrices; None where those are not told."""
    latent: int | None = None
    """Multi-head latent attention: numbers cached per token and layer, in place of keys and values."""
    window: int | None = None
    """Some layers look back at most so many tokens: the cache is smaller than the formula says."""

    @property
    def kv_numbers(self) -> int:
        """Numbers cached per token, over all layers."""
        if self.latent is not None:
            return self.layers * self.latent
        return 2 * self.layers * self.kv_heads * self.head_dim


def read_shape(path: Path) -> ModelShape:
    """The shape in `path`, a config.json or the directory that holds one. Raises ShapeUnknown, OSError."""
    if path.is_dir():
        path = path / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ShapeUnknown(f"{path}: {error}") from None
    if not isinstance(config, dict):
        raise ShapeUnknown(f"{path}: not an object")
    try:
        return shape_of(config)
    except ShapeUnknown as error:
        raise ShapeUnknown(f"{path}: {error}") from None


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape of a parsed config.json; of its text model, if it has others. Raises ShapeUnknown."""
    dtype = config.get("torch_dtype") or config.get("dtype")
    if isinstance(config.get("text_config"), dict):
        config = {**config["text_config"]}
        dtype = config.get("torch_dtype") or config.get("dtype") or dtype
    layers = _count(config, "num_hidden_layers", "n_layer", "n_layers")
    hidden = _count(config, "hidden_size", "n_embd", "d_model")
    heads = _count(config, "num_attention_heads", "n_head", "n_heads")
    kv_heads = config.get("num_key_value_heads") or config.get("num_kv_heads")
    if kv_heads is None:
        kv_heads = 1 if config.get("multi_query") else heads
    latent = None
    if config.get("kv_lora_rank"):
        latent = config["kv_lora_rank"] + config.get("qk_rope_head_dim", 0)
    if dtype is not None and dtype not in DTYPE_BYTES:
        raise ShapeUnknown(f"unknown dtype {dtype!r}")
    head_dim = config.get("head_dim") or hidden // heads
    return ModelShape(
        name=str(config.get("_name_or_path") or config.get("model_type") or "model"),
        layers=layers,
        heads=heads,
        kv_heads=int(kv_heads),
        head_dim=int(head_dim),
        dtype_bytes=DTYPE_BYTES.get(dtype or "bfloat16", 2.0),
        parameters=None
        if latent
        else _parameters(config, layers, hidden, heads, int(kv_heads), int(head_dim)),
        latent=latent,
        window=config.get("sliding_window") if config.get("use_sliding_window", True) else None,
    )


def _parameters(
    config: Mapping[str, Any], layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int
) -> int | None:
    """Of a decoder with gated feed-forward layers (Llama, Mistral, Qwen, Mixtral); biases are left out."""
    vocabulary, inner = config.get("vocab_size"), config.get("intermediate_size")
    if not vocabulary or not inner or "hidden_size" not in config:
        return None
    experts = config.get("num_local_experts") or config.get("num_experts") or 1
    if experts > 1:
        inner = config.get("moe_intermediate_size") or inner
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    layer = attention + experts * 3 * hidden * inner + 2 * hidden
    if experts > 1:
        layer += experts * hidden
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return int(embeddings + layers * layer + hidden)


def _count(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    raise ShapeUnknown(f"no {names[0]}")
