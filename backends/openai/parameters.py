"""What a generic engine of OpenAI's dialect gets: everything, as it is. It says itself what it cannot do.

Beam search, logits and programs, a template of the client's own among them, go to no engine.
"""

from backends.mapping import LOGITS, NEVER, Table, Tables, forwarded

__all__ = ["TABLES"]

_TABLE = Table({**LOGITS, "chat_template": NEVER["chat_template"]}, others=forwarded())
TABLES = Tables(chat=_TABLE, completions=_TABLE)
