"""The texts of a request, found the short way and the long one."""

import pytest

from backends.contract import GenerateRequest
from gateway.tokens.prompts import plain_texts, texts_in

USER = {"role": "user", "content": "How wide is the gate?"}
NAMED = {"content": "Two metres.", "role": "assistant", "name": "keeper"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": "how deep?"}]}
CALLING = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "depth"}}]}
TOOLS = [{"type": "function", "function": {"name": "depth"}}]


def a_request(**fields) -> GenerateRequest:
    return GenerateRequest(request_id="r", model="m", stream=False, **fields)


def test_a_chat_of_texts_is_plain():
    request = a_request(messages=[USER, NAMED], parameters={"temperature": 0})
    texts = ["user", "How wide is the gate?", "Two metres.", "assistant", "keeper"]
    assert plain_texts(request) == list(texts_in(request)) == texts


def test_a_single_prompt_is_plain():
    assert (
        plain_texts(a_request(prompt="The gate"))
        == list(texts_in(a_request(prompt="The gate")))
        == ["The gate"]
    )


@pytest.mark.parametrize(
    ("request_", "texts"),
    [
        (a_request(messages=[USER, PARTS]), ["user", USER["content"], "user", "And", "how deep?"]),
        (a_request(messages=[CALLING]), ["assistant", "id", "1", "function", "name", "depth"]),
        (
            a_request(messages=[USER], parameters={"tools": TOOLS}),
            ["user", USER["content"], "type", "function", "function", "name", "depth"],
        ),
        (a_request(messages=[USER] * 200), ["user", USER["content"]] * 200),
        (a_request(prompt=["a", "b"]), ["a", "b"]),
        (a_request(prompt=[1, 2]), []),
    ],
    ids=["parts", "tool calls", "tools", "many messages", "several prompts", "token ids"],
)
def test_what_is_not_plain_is_found_all_the_same(request_, texts):
    assert plain_texts(request_) is None
    assert list(texts_in(request_)) == texts
