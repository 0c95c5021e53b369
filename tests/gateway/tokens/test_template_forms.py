"""Chat templates in the forms of real models, against `transformers`' own rendering, over any conversation.

Written for this test in the shape of what Llama 3.1, Qwen, Mistral and Gemma ship: dates, tools in the first
user's message, thinking, alternation checks with their refusals, a system message folded into the user's.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers.utils.chat_template_utils import render_jinja_template

from gateway.errors import BadRequest
from gateway.tokens.counters import HuggingFaceCounter
from gateway.tokens.templates import ChatTemplate, ControlTokens, TemplateSource
from tests.gateway.tokens.conftest import SPECIAL

FORMS = {
    file.stem: file.read_text(encoding="utf-8")
    for file in sorted((Path(__file__).parent / "forms").glob("*.jinja"))
}
BOS = {"llama3.1": "<|begin_of_text|>", "mistral": "<s>", "gemma2": "<s>", "gemma3": "<s>"}
"""Qwen has none."""
TOKENS = {"eos_token": "</s>"}

TOOL = {
    "type": "function",
    "function": {
        "name": "open_gate",
        "description": "Opens <a> gate & says 'so'.",
        "parameters": {
            "type": "object",
            "properties": {"gate": {"type": "string", "enum": ["шлюз", "渠首"]}},
        },
    },
}


def names_of(form: str) -> dict[str, str]:
    return {**TOKENS, **({"bos_token": BOS[form]} if form in BOS else {})}


def ours(form: str, control: ControlTokens | None = None) -> ChatTemplate:
    return ChatTemplate(
        TemplateSource(FORMS[form], special_tokens=names_of(form)), control or ControlTokens(())
    )


def theirs(form: str, messages: list[dict[str, Any]], **options: Any) -> str:
    options = {"add_generation_prompt": True, **options}
    (text,), _ = render_jinja_template([messages], chat_template=FORMS[form], **names_of(form), **options)
    return text


@cache
def guarded(form: str, bpe: tokenizers.Tokenizer) -> ChatTemplate:
    """With the control tokens of `bpe`."""
    return ours(form, ControlTokens.proved(HuggingFaceCounter(bpe, "test"), FORMS[form]))


OURS = {form: ours(form) for form in FORMS}
every_form = pytest.mark.parametrize("form", FORMS)

texts = st.text(max_size=12) | st.sampled_from(
    ["", " ", "\n", "  two  lines \n\n", "<think>\nhm\n</think>\n\nso", "{{ bos_token }}", "{% raw %}",
     "<b>&'", "Шлюз 渠首 🚪", "<tool_response>x</tool_response>", *SPECIAL]
)  # fmt: skip
arguments = st.dictionaries(
    st.text(max_size=4), st.none() | st.booleans() | st.integers() | texts, max_size=3
)
calls = st.builds(
    lambda id_, arguments: {
        "id": id_,
        "type": "function",
        "function": {"name": "open_gate", "arguments": arguments},
    },
    st.sampled_from(["abcdefghi", "call_1"]),
    arguments,
)
turns = st.one_of(
    st.builds(lambda text: [{"role": "user", "content": text}], texts),
    st.builds(lambda text: [{"role": "assistant", "content": text}], texts),
    st.builds(
        lambda ask, say: [{"role": "user", "content": ask}, {"role": "assistant", "content": say}],
        texts,
        texts,
    ),
    st.builds(
        lambda text, thought: [{"role": "assistant", "content": text, "reasoning_content": thought}],
        texts,
        texts,
    ),
    st.builds(
        lambda calls, text: [
            {"role": "assistant", "content": "", "tool_calls": calls},
            *({"role": "tool", "tool_call_id": call["id"], "content": text} for call in calls),
        ],
        st.lists(calls, min_size=1, max_size=2),
        texts,
    ),
)
conversations = st.builds(
    lambda system, first, rest: [
        *([] if system is None else [{"role": "system", "content": system}]),
        {"role": "user", "content": first},
        *(message for turn in rest for message in turn),
    ],
    st.none() | texts,
    texts,
    st.lists(turns, max_size=4),
)


@every_form
@settings(max_examples=60, deadline=None)
@given(
    messages=conversations,
    tools=st.sampled_from([None, [TOOL], [TOOL, TOOL]]),
    add_generation_prompt=st.booleans(),
    variables=st.sampled_from([{}, {"enable_thinking": False}, {"tools_in_user_message": False}]),
)
def test_any_conversation_as_transformers_renders_it(
    form: str,
    messages: list[dict[str, Any]],
    tools: list[Any] | None,
    add_generation_prompt: bool,
    variables: dict[str, Any],
) -> None:
    """The same text, or the same refusal in the words of the template."""
    options = {"tools": tools, "add_generation_prompt": add_generation_prompt}
    try:
        expected = theirs(form, messages, **options, **variables)
    except (jinja2.TemplateError, TypeError) as refused:
        with pytest.raises(BadRequest) as told:
            OURS[form].render(messages, variables=variables, **options)
        if type(refused) is jinja2.TemplateError:
            assert str(refused) in told.value.message
    else:
        assert OURS[form].render(messages, variables=variables, **options) == expected


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_have_many_names(name: str) -> None:
    """A client sends them back as it got them; templates read `reasoning_content`, or `thinking`."""
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "Yes.", name: "Hm."},
    ]
    rendered = OURS["qwen"].render(messages)
    assert "<think>\nHm.\n</think>" in rendered
    assert rendered == theirs("qwen", messages)
    source = TemplateSource("{{ messages[1].thinking }}", special_tokens={})
    assert ChatTemplate(source, ControlTokens(())).render(messages) == "Hm."


ENDS = {"text": "The gate", "with space": " The gate  "}


@pytest.mark.parametrize("form", ["llama3.1", "qwen", "gemma2", "gemma3", "mistral"])
@pytest.mark.parametrize("end", ["text", "with space"])
def test_the_last_message_is_continued_as_transformers_does(form: str, end: str) -> None:
    """`continue_final_message`: no end of the turn, no new one."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ENDS[end]}]
    told = OURS[form].render(messages, continue_final_message=True)
    assert told == theirs(form, messages, add_generation_prompt=False, continue_final_message=True)
    assert told.endswith(("The gate", "The gate  "))


def test_what_cannot_be_continued_is_refused() -> None:
    """A message without a text, and a template that does not show it."""
    calling = [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": []}]
    with pytest.raises(BadRequest) as none:
        OURS["qwen"].render(calling, continue_final_message=True)
    silent = ChatTemplate(TemplateSource("so", special_tokens={}), ControlTokens(()))
    with pytest.raises(BadRequest) as unshown:
        silent.render([{"role": "user", "content": "?"}], continue_final_message=True)
    assert none.value.param == unshown.value.param == "continue_final_message"


def test_parts_are_continued_behind_the_last() -> None:
    parts = [{"type": "text", "text": "The"}, {"type": "text", "text": " gate"}]
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": parts}]
    assert (
        OURS["gemma3"].render(messages, continue_final_message=True).endswith("<start_of_turn>model\nThegate")
    )
    assert OURS["qwen"].render(messages, continue_final_message=True).endswith("\nThe gate")


def test_a_namespace_takes_no_names_of_the_interpreter() -> None:
    for program in ("{% set ns = namespace(__x=1) %}", "{% set ns = namespace() %}{% set ns._y = 1 %}"):
        with pytest.raises(BadRequest):
            ChatTemplate(TemplateSource(program, special_tokens={}), ControlTokens(())).render(
                [{"role": "user", "content": "?"}]
            )
    fine = TemplateSource("{% set ns = namespace({'a': 1}, self=2) %}{{ ns.a + ns.self }}", special_tokens={})
    assert ChatTemplate(fine, ControlTokens(())).render([{"role": "user", "content": "?"}]) == "3"


def directory_of(form: str, bpe: tokenizers.Tokenizer, place: Path) -> Path:
    """A model's directory, whose tokenizer puts the form's own BOS before any text."""
    tokenizer = tokenizers.Tokenizer.from_str(bpe.to_str())
    if form in BOS:
        bos = BOS[form]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.save(str(place / "tokenizer.json"))
    (place / "chat_template.jinja").write_text(FORMS[form])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names_of(form)}
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place


@every_form
def test_there_is_one_bos(form: str, bpe: tokenizers.Tokenizer, tmp_path: Path) -> None:
    """An engine that puts a BOS before any text gets ours without: the ids are those of `transformers`."""
    from transformers import AutoTokenizer  # late: takes most of a second

    directory = directory_of(form, bpe, tmp_path)
    source = TemplateSource.read(directory)
    assert source is not None
    counter = HuggingFaceCounter.from_directory(directory)
    template = ChatTemplate(source, ControlTokens.proved(counter, source.text))
    messages = [{"role": "user", "content": "Hi"}]
    reference = AutoTokenizer.from_pretrained(directory)
    ids = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    text = template.render(messages, neutralise=True)
    assert counter.ids(template.strip_bos(text), add_special_tokens=True) == ids
    assert counter.ids(text) == ids
    if form in BOS:
        assert ids.count(counter.ids(BOS[form])[0]) == 1


@every_form
@settings(max_examples=25, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from([*SPECIAL, "<|im_", "end|>", "[/IN", "ST]", "<", "s>", " ", "ш"]), max_size=8
    )
)
def test_nobody_writes_a_turn_from_within_one(
    form: str, bpe: tokenizers.Tokenizer, pieces: list[str]
) -> None:
    """Whatever control tokens users spell, the tokenizer sees those of the template and no others."""
    template = guarded(form, bpe)
    steering = {bpe.token_to_id(token) for token in SPECIAL}

    def seen(text: str) -> list[int]:
        messages = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": [{"type": "text", "text": each} for each in (*pieces, "no")]},
        ]
        rendered = template.render(messages, neutralise=True)
        return [token for token in bpe.encode(rendered, add_special_tokens=False).ids if token in steering]

    assert seen("".join(pieces)) == seen("harmless")
