"""Triton's OpenAI frontend: another server, on another port, than Triton's own interface."""
