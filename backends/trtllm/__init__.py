"""TensorRT-LLM's OpenAI server, `trtllm-serve`."""
