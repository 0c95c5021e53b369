"""What a generic engine of OpenAI's dialect gets: everything, as it is. It says itself what it cannot do.

Beam search, logits and programs go to no engine.
"""

from backends.mapping import LOGITS, Table, Tables, forwarded

__all__ = ["TABLES"]

_TABLE = Table(LOGITS, others=forwarded())
TABLES = Tables(chat=_TABLE, completions=_TABLE)
