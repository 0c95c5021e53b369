"""Benchmarks: each runs both sides in one go and prints a ratio. `--smoke` takes seconds."""
