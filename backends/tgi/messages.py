"""TGI's Messages API (its OpenAI routes) on the wire: `options: {api: messages}`.

TGI applies the chat template here. Its schema is OpenAI's by name only (router/src/lib.rs, `ChatRequest`;
router/src/chat.rs), so parameters pass by list, and some by another form:

    stop               a list only: a plain string is a 422; more than max_stop_sequences too
    top_p              0 and 1 are refused; 1 means off, 0 greedy
    presence_penalty   becomes a repetition_penalty of itself + 2, so that 0 distorts every answer: never sent
    logit_bias         typed as a list: OpenAI's object is a 422
    response_format    wants its schema in `value`; knows no `text`
    tools              `[]` counts as tools; with a response_format it is a 422
    n                  accepted and ignored: one choice
    model              "tgi" is the base model; any other name chooses a LoRA adapter

The stop string stays in the text, and text may run past it: cut here, choice by choice.
"""

from typing import Any

from backends.contract import GenerateRequest, HttpRequest, Unsupported
from backends.openai_cutting import CuttingDecoder
from backends.openai_dialect import choices_asked, openai_request
from backends.tgi import wire

__all__ = ["decoder", "encode", "unsupported"]

_MAX_TOP_LOGPROBS = 5
_PASSED = ("temperature", "frequency_penalty", "logprobs", "top_logprobs", "tool_choice", "tool_prompt")
_REFUSED = ("logit_bias", "best_of", "echo", "suffix", "functions", "audio")
_NEUTRAL = {"best_of": 1, "echo": False}


def unsupported(request: GenerateRequest, *, max_stop_sequences: int) -> Unsupported | None:
    parameters = request.parameters
    if request.n != 1:
        return Unsupported("n", "This engine gives one choice for each request.")
    if isinstance(request.prompt, list) and not all(isinstance(text, str) for text in request.prompt):
        return Unsupported("prompt", "This engine takes prompts as text.")
    for field in _REFUSED:
        if (value := parameters.get(field)) and value != _NEUTRAL.get(field):
            return Unsupported(field, f"This engine cannot serve {field}.")
    if request.messages is None and type(parameters.get("logprobs")) is int:
        return Unsupported("logprobs", "This engine gives no log probabilities for completions.")
    top_logprobs = parameters.get("top_logprobs")
    if type(top_logprobs) is int and top_logprobs > _MAX_TOP_LOGPROBS:
        return Unsupported("top_logprobs", f"This engine gives at most {_MAX_TOP_LOGPROBS} of them.")
    if parameters.get("tools") and wire.is_constrained(parameters.get("response_format")):
        return Unsupported(
            "response_format", "This engine cannot constrain its output and call tools at once."
        )
    return wire.unsupported_values(request, max_stop_sequences=max_stop_sequences)


def encode(request: GenerateRequest) -> HttpRequest:
    given = request.parameters
    parameters: dict[str, Any] = {name: given[name] for name in _PASSED if given.get(name) is not None}
    if request.messages is None:
        for name in ("logprobs", "top_logprobs", "tool_choice", "tool_prompt"):
            parameters.pop(name, None)
    elif tools := given.get("tools"):
        parameters["tools"] = tools
    else:
        parameters.pop("tool_choice", None)
    top_p = given.get("top_p")
    if isinstance(top_p, int | float) and top_p < 1:
        parameters |= {"top_p": top_p} if top_p > 0 else {"temperature": 0}
    if (seed := wire.seed(given.get("seed"))) is not None:
        parameters["seed"] = seed
    if (grammar := wire.grammar(given.get("response_format"))) is not None and request.messages is not None:
        parameters["response_format"] = grammar
    return openai_request(request, parameters)


def decoder(request: GenerateRequest) -> CuttingDecoder:
    return CuttingDecoder(choices_asked(request), wire.classify, request.stop)
