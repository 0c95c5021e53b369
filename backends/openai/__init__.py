"""Any engine that speaks OpenAI's own dialect and is none of those with an adapter of their own."""
