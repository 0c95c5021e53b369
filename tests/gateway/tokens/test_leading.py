"""A prompt's leading blocks: equal as far as prompts begin alike, and no further."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from backends.contract import GenerateRequest
from gateway.tokens.leading import CHARACTERS, MOST, leading

BLOCK = 8
SIZE = BLOCK * CHARACTERS


def chat(*texts: Any, **parameters: Any) -> GenerateRequest:
    messages = [{"role": "user" if i % 2 else "system", "content": text} for i, text in enumerate(texts)]
    return GenerateRequest(request_id="r", model="m", stream=True, messages=messages, parameters=parameters)


def completion(prompt: Any) -> GenerateRequest:
    return GenerateRequest(request_id="r", model="m", stream=True, prompt=prompt)


def blocks(request: GenerateRequest, salt: object = "m") -> tuple[int, ...]:
    return leading(request, 1000, BLOCK, salt).blocks


def shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


LONG = "A canal is a promise that water makes to a town. " * 8
TEXTS = st.lists(st.text(max_size=120), min_size=1, max_size=6)


@given(TEXTS, TEXTS)
def test_a_conversation_that_grows_keeps_its_blocks(before: list[str], after: list[str]) -> None:
    grown = blocks(chat(*before, *after))
    assert grown[: len(blocks(chat(*before)))] == blocks(chat(*before))


@given(st.text(max_size=300), st.text(max_size=300))
def test_texts_share_as_many_blocks_as_they_begin_alike(one: str, other: str) -> None:
    alike = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    assert shared(blocks(completion(one)), blocks(completion(other))) == alike // SIZE


def test_whose_word_it_is_counts_and_so_does_the_salt():
    spoken = chat(LONG)
    other = GenerateRequest(
        request_id="r", model="m", stream=True, messages=[{"role": "assistant", "content": LONG}]
    )
    assert not shared(blocks(spoken), blocks(other))
    assert not shared(blocks(spoken), blocks(spoken, "another model"))
    assert blocks(spoken) == blocks(chat(LONG))


def test_tools_and_template_arguments_are_part_of_the_beginning():
    tools = [{"type": "function", "function": {"name": "open_gate", "description": "x" * 80}}]
    plain, armed = blocks(chat(LONG)), blocks(chat(LONG, tools=tools))
    assert not shared(plain, armed)
    assert shared(armed, blocks(chat(LONG, "and?", tools=tools))) == len(armed)
    assert not shared(plain, blocks(chat(LONG, reasoning_effort="high")))


def test_parts_of_text_and_images_are_told_apart():
    def seen(image: str) -> tuple[int, ...]:
        parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}]
        return blocks(chat([*parts, {"type": "text", "text": LONG}]))

    assert seen("a" * 5000) == seen("a" * 5000)
    for other in ("b" * 5000, "a" * 5001, "a" * 4999 + "b"):
        assert shared(seen("a" * 5000), seen(other)) <= 600 // SIZE, "nothing behind the image"


def test_a_call_to_a_tool_is_part_of_it():
    def after(arguments: str) -> tuple[int, ...]:
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        asked = {"role": "assistant", "content": None, "tool_calls": [call]}
        messages = [asked, {"role": "user", "content": LONG}]
        return blocks(GenerateRequest(request_id="r", model="m", stream=True, messages=messages))

    assert after('{"gate": 1}') == after('{"gate": 1}')
    assert shared(after('{"gate": 1}'), after('{"gate": 2}')) < len(after("")) - len(LONG) // SIZE + 1


def test_token_ids_are_cut_exactly():
    ids = list(range(1000, 1000 + 3 * BLOCK + 2))
    told = leading(completion(ids), len(ids), BLOCK)
    assert (len(told.blocks), told.tokens) == (3, BLOCK)
    changed = [*ids[: BLOCK + 1], 7, *ids[BLOCK + 2 :]]
    assert shared(told.blocks, leading(completion([changed]), len(ids), BLOCK).blocks) == 1


def test_how_many_tokens_a_block_is_follows_from_the_prompt():
    russian = completion("канал " * 400)  # 2,400 characters: 600 tokens for one tokenizer, 1,200 for another
    assert leading(russian, 600, 128).tokens == 128
    assert leading(russian, 1200, 128).tokens == 256


def test_several_prompts_have_no_beginning_and_short_ones_no_block():
    assert blocks(completion([LONG, LONG])) == ()
    assert blocks(completion([LONG])) == blocks(completion(LONG))
    assert leading(completion("hi"), 1, 128).blocks == ()


def test_work_is_bounded():
    """By characters, and by the number of things that are looked at."""
    endless = leading(completion("x" * (4 * MOST)), 400_000, 128)
    assert len(endless.blocks) == MOST // (128 * CHARACTERS)
    assert endless.tokens * len(endless.blocks) <= 400_000 // 4, "what is not looked at is not claimed"
    crumbs = chat([{"type": "text", "text": "x" * 8} for _ in range(100_000)])
    assert leading(crumbs, 400_000, 128).tokens == 128
    assert 0 < len(leading(crumbs, 400_000, 128).blocks) < 300
