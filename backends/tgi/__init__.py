"""Hugging Face Text Generation Inference, over its native routes."""
