"""Any engine that speaks OpenAI's own dialect: vLLM, SGLang, llama.cpp, Triton's OpenAI frontend."""
