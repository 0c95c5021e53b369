"""What a generic engine of OpenAI's dialect gets: what is asked, as it is. It says itself what it cannot do.

But nobody knows which engine it is: what reaches past the gateway in any of them is refused, other names of
the bound on the output among it.
"""

from backends.mapping import NEVER, Table, Tables, forwarded, refused

__all__ = ["TABLES"]

_LIFTS = refused("It would lift the bound: use max_tokens.", -1)

_TABLE = Table({**NEVER, "n_predict": _LIFTS, "max_new_tokens": _LIFTS}, others=forwarded())
TABLES = Tables(chat=_TABLE, completions=_TABLE)
