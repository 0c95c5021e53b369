"""Triton Inference Server with TensorRT-LLM's classic models, over its HTTP generate extension."""
