"""Parameters x engines: docs/parameters.md, printed from the tables that write the requests.

    python -m backends.parameters > docs/parameters.md      the page
    python -m backends.parameters --count                   how many cells are forwarded, renamed, ...

A cell is one parameter of one route on one engine. The rows are OpenAI's parameters of today and the
extensions that clients of these engines send; the cells are looked up in the engines' tables, and hold
whatever their rules say of themselves.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

from backends.mapping import How, Rule, Table, Tables, emulated
from backends.registry import REGISTRY

__all__ = ["COLUMNS", "GATEWAY", "OPENAI_CHAT", "OPENAI_COMPLETIONS", "Cell", "cells", "main", "page"]


class Column(NamedTuple):
    name: str
    kind: str
    options: Mapping[str, Any]


COLUMNS: tuple[Column, ...] = (
    Column("trtllm", "trtllm", {}),
    Column("triton", "triton", {}),
    Column("triton llmapi", "triton", {"vocabulary": "llmapi"}),
    Column("triton-openai", "triton-openai", {}),
    Column("tgi", "tgi", {}),
    Column("tgi messages", "tgi", {"api": "messages"}),
    Column("vllm", "vllm", {}),
    Column("sglang", "sglang", {}),
    Column("llamacpp", "llamacpp", {}),
    Column("openai", "openai", {}),
)
"""Engines with the options that change what they take; all others at their defaults."""


def _held(says: str) -> Rule:
    return emulated(lambda _: {}, says)


GATEWAY: Mapping[str, Rule] = {
    "model": _held("the public name; the engine gets the one that the pool's `serves` says"),
    "max_completion_tokens": _held("the newer name of max_tokens, and wins over it"),
    "stream": _held("the engine streams as `upstream_stream` says; the client gets what it asked for"),
    "stream_options": _held("usage is asked of every engine that streams it, and shown to who asked for it"),
    "service_tier": _held("chooses the class in the queue"),
    "priority": _held("counts within the class, where the pool tells engines (`engine_priority`)"),
}
"""What the gateway acts on alone, alike for every engine: adapters never see the field itself."""

OPENAI_CHAT: tuple[str, ...] = (
    "model", "messages", "max_tokens", "max_completion_tokens", "n", "stop", "stream", "stream_options",
    "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs",
    "top_logprobs", "response_format", "tools", "tool_choice", "parallel_tool_calls", "functions",
    "function_call", "reasoning_effort", "verbosity", "modalities", "audio", "prediction",
    "web_search_options", "moderation", "service_tier", "store", "metadata", "user", "safety_identifier",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
)  # fmt: skip
"""OpenAI's parameters of /v1/chat/completions; a test compares them with the official SDK's."""
OPENAI_COMPLETIONS: tuple[str, ...] = (
    "model", "prompt", "max_tokens", "n", "best_of", "stop", "stream", "stream_options", "temperature",
    "top_p", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "echo", "suffix",
    "user",
)  # fmt: skip
"""OpenAI's parameters of /v1/completions."""
_EXTENSIONS: tuple[str, ...] = (
    "top_k", "min_p", "typical_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids",
    "bad_words", "allowed_token_ids", "include_stop_str_in_output", "skip_special_tokens",
    "spaces_between_special_tokens", "truncate_prompt_tokens", "add_special_tokens", "guided_json",
    "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "regex", "ebnf", "grammar",
    "json_schema", "thinking_token_budget", "cache_salt", "priority", "prompt_logprobs", "use_beam_search",
    "beam_width", "length_penalty", "return_context_logits", "return_hidden_states", "logits_processors",
    "chat_template", "lora_request", "lora_path", "lora", "kv_transfer_params", "prompt_embeds", "request_id",
)  # fmt: skip
_CHAT_EXTENSIONS: tuple[str, ...] = (
    *_EXTENSIONS, "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "documents",
    "best_of", "echo",
)  # fmt: skip
_COMPLETIONS_EXTENSIONS: tuple[str, ...] = (*_EXTENSIONS, "response_format", "tools")


class Cell(NamedTuple):
    route: str
    parameter: str
    column: str
    rule: Rule


def _tables(column: Column) -> Tables:
    return cast("_HasTables", REGISTRY.adapter(column.kind, column.options)).tables


class _HasTables(Protocol):
    """What every adapter here has, and the gateway need not know."""

    tables: Tables


def cells() -> list[Cell]:
    """All cells, row by row."""
    tables = {column.name: _tables(column) for column in COLUMNS}
    found = []
    for route, names in (
        ("chat", (*OPENAI_CHAT, *_CHAT_EXTENSIONS)),
        ("completions", (*OPENAI_COMPLETIONS, *_COMPLETIONS_EXTENSIONS)),
    ):
        for name in dict.fromkeys(names):
            for column in COLUMNS:
                table: Table = getattr(tables[column.name], route)
                rule = GATEWAY.get(name) or table.rules.get(name, table.others)
                found.append(Cell(route, name, column.name, rule))
    return found


# ------------------------------------------------------------------------------------------------ page

_ROUTES = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_HEAD = """# Parameters and engines

What becomes of each parameter on each engine. This page is printed from the tables that write the requests
(`backends/*/parameters.py`) by `python -m backends.parameters > docs/parameters.md`; a test holds the two
together.

| word | meaning |
|---|---|
| forwarded | under its name, as it is, checked for type and range |
| renamed | under another name |
| converted | in another form |
| emulated | done by the gateway, though the engine may be told as well |
| neutral | not sent: it changes no answer |
| refused | a 400 that names it; values that ask for nothing (false, 0, empty, null) pass |

A request is served by the first pool of its chain that refuses none of its parameters; the 400 comes where
none is left. Any engine may refuse a single value (a range, a type) whatever the word says.

**Names that have no row**: `trtllm`, `triton`, `triton-openai` and `tgi` have closed lists: anything else is
refused, since they would refuse it without a name or ignore it in silence. `vllm`, `sglang`, `llamacpp` and
`openai` get what the table does not know as it is: their versions add names faster than a table can, and they
ignore what they do not know. An operator's `defaults` of a model count as if the client had sent them.

**Beam search** and **logits** are offered nowhere; `logprobs` are, where the engine has them.

**Tools** on Triton's own interface and TGI's native routes: the gateway renders the chat template there, and
could render the tools into it, but what comes back is text in the form that the model was trained for, which
the gateway does not guess at. Refused; a conversation that *holds* tool calls and their results is rendered.
With TGI use `{api: messages}`; in place of Triton `trtllm-serve`, or the OpenAI frontend with
`tool_calling: true`. That `trtllm-serve`, vLLM and SGLang were started with a tool parser, nobody can ask
them: where it is missing, they say so in a 400, or give the call as text.

**`response_format`** on classic Triton needs `guided_decoding: true`, which says that the models have its
tensors: then `json_object`, `json_schema` and `guided_regex` become `guided_decoding_guide_type` and
`guided_decoding_guide`. TGI needs a schema with `properties`; `trtllm-serve` a `guided_decoding_backend` in
its YAML.
"""


def page() -> str:
    """docs/parameters.md."""
    found = cells()
    parts = [_HEAD, "## How many\n", _count(found)]
    for route, path in _ROUTES.items():
        own = [cell for cell in found if cell.route == route]
        openai = set(OPENAI_CHAT if route == "chat" else OPENAI_COMPLETIONS)
        parts.append(f"## `{path}`\n\n### OpenAI's parameters\n")
        parts.append(_matrix([cell for cell in own if cell.parameter in openai]))
        parts.append("### Extensions\n")
        parts.append(_matrix([cell for cell in own if cell.parameter not in openai]))
    parts.append("## In detail\n")
    parts += [_details(column, found) for column in COLUMNS]
    parts.append(_conflicts())
    return "\n".join(parts)


def _row(values: Iterable[object]) -> str:
    return "| " + " | ".join(str(value) for value in values) + " |"


def _rows(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    return "\n".join([_row(head), "|" + "---|" * len(head), *map(_row, rows)]) + "\n"


def _matrix(found: Sequence[Cell]) -> str:
    rows: dict[str, dict[str, str]] = {}
    for cell in found:
        rows.setdefault(cell.parameter, {})[cell.column] = cell.rule.how.value
    names = [column.name for column in COLUMNS]
    return _rows(
        ["", *names], [[f"`{parameter}`", *(row[name] for name in names)] for parameter, row in rows.items()]
    )


def _count(found: Sequence[Cell]) -> str:
    counted = {
        column.name: Counter(c.rule.how for c in found if c.column == column.name) for column in COLUMNS
    }
    total = Counter(cell.rule.how for cell in found)
    rows = [[name, *(counts[how] for how in How), counts.total()] for name, counts in counted.items()]
    return _rows(["", *How, "cells"], [*rows, ["all", *(total[how] for how in How), total.total()]])


def _details(column: Column, found: Sequence[Cell]) -> str:
    """What the rules of one engine say of themselves, each once; the common ones of the gateway apart."""
    said: dict[str, list[str]] = {}
    for cell in found:
        if cell.column != column.name or not cell.rule.says or cell.parameter in GATEWAY:
            continue
        line = f"{cell.rule.how}: {cell.rule.says}"
        routes = said.setdefault(line, [])
        if cell.parameter not in routes:
            routes.append(cell.parameter)
    lines = [f"- {', '.join(f'`{name}`' for name in names)}: {line}" for line, names in said.items()]
    return f"### {column.name}\n\n" + "\n".join(lines) + "\n"


def _conflicts() -> str:
    rows = []
    for column in COLUMNS:
        tables = _tables(column)
        conflicts = dict.fromkeys((*tables.chat.conflicts, *tables.completions.conflicts))
        rows += [[column.name, f"`{conflict.param}`", conflict.message] for conflict in conflicts]
    return "## Refused together\n\n" + _rows(["engine", "the 400 names", "because"], rows)


def main(arguments: Sequence[str]) -> None:
    """Print the page, or the count."""
    sys.stdout.write(_count(cells()) if "--count" in arguments else page())


if __name__ == "__main__":
    main(sys.argv[1:])
