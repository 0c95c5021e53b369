"""Exit codes of the command line."""

PROBLEM = 1
"""A problem with what was asked."""

COULD_NOT_START = 3
"""uvicorn's convention, which its supervisors know: starting again will not help."""
