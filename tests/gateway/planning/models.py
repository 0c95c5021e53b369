"""Shapes of well-known models, as their config.json tell them; fields that do not matter left out."""

from typing import Any

LLAMA3_8B: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14_336, "vocab_size": 128_256, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}  # fmt: skip
LLAMA3_70B: dict[str, Any] = {
    **LLAMA3_8B, "num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64,
    "intermediate_size": 28_672,
}  # fmt: skip
LLAMA2_7B: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "intermediate_size": 11_008, "vocab_size": 32_000, "torch_dtype": "float16",
}  # fmt: skip
MIXTRAL_8X7B: dict[str, Any] = {
    **LLAMA3_8B, "model_type": "mixtral", "vocab_size": 32_000, "num_local_experts": 8,
}  # fmt: skip
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128,
    "num_key_value_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "intermediate_size": 18_432,
    "vocab_size": 129_280, "torch_dtype": "bfloat16",
}  # fmt: skip
