"""Rules that engines share which take and give one text: Triton's models, TGI's native routes.

They know no messages, tools or choices. The gateway renders the model's chat template for them, so what
speaks of the template is done by the gateway. A model's own tool calls would come as text in whatever form
its training gave them; the gateway does not guess at it, and tools are refused.
"""

from collections.abc import Mapping
from typing import Any

from backends.mapping import (
    NEVER,
    ONE_BY_ONE,
    SAFE,
    Rule,
    Unfit,
    boolean,
    emulated,
    record,
    refused,
)
from backends.openai_parameters import COMMON, NO_FIM
from backends.text_engines import only_text

__all__ = ["CHAT", "COMPLETIONS", "OTHERS", "TEXT"]


def _messages(value: Any) -> Mapping[str, Any]:
    for message in value:
        content = message.get("content")
        if isinstance(content, list) and any(not _is_text_part(part) for part in content):
            raise Unfit("This engine takes text parts only.")
    return {}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, Mapping) and part.get("type") in ("text", "refusal"))


def _prompt(value: Any) -> Mapping[str, Any]:
    if only_text(value) is None:
        raise Unfit("This engine takes prompts as text.")
    return {}


_TOOLS = "This engine takes plain text and cannot call tools."
_LOGPROBS = "Log probabilities are not read from this engine's answers."


def _template(check: Any) -> Rule:
    """For variables of the template, which the gateway renders."""

    def convert(value: Any) -> Mapping[str, Any]:
        check(value)
        return {}

    return emulated(convert, "the gateway renders the chat template")


TEXT: Mapping[str, Rule] = {
    **COMMON,
    **NEVER,
    **SAFE,
    "n": ONE_BY_ONE,
    "logprobs": refused(_LOGPROBS, nothing=(False,)),
    "top_logprobs": refused(_LOGPROBS),
    "logit_bias": refused("This engine cannot bias tokens."),
    "echo": refused("This engine cannot repeat the prompt."),
    "suffix": NO_FIM,
    "tools": refused(_TOOLS),
    "tool_choice": refused(_TOOLS, "none", "auto"),
    "parallel_tool_calls": refused(_TOOLS, True, nothing=(False,)),
}
CHAT: Mapping[str, Rule] = {
    "messages": emulated(_messages, "rendered by the gateway in the model's own chat template"),
    "chat_template_kwargs": _template(record),
    "add_generation_prompt": _template(boolean),
    "continue_final_message": _template(boolean),
}
COMPLETIONS: Mapping[str, Rule] = {
    "prompt": emulated(_prompt, "the text alone, put where the engine wants it")
}

OTHERS = refused("This engine knows no such parameter.")
