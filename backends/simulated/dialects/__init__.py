"""The dialects, one per file; each speaks as the real server does, its traps included."""
