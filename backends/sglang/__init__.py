"""SGLang's OpenAI server."""
