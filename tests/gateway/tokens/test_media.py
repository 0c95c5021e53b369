"""What parts of a chat that are not text cost."""

import pytest

from backends.contract import GenerateRequest
from gateway.call import PromptCount
from gateway.config.snapshot import MediaTokens
from gateway.tokens.media import cost_of, with_media
from tests.gateway.builders import a_model

COSTS = MediaTokens(image=576, image_low=85, image_high=765, audio=1500, file=4000)
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
VIDEO = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
TEXT = {"type": "text", "text": "see"}


def counted(*parts, costs=COSTS, source="tokenizer x, text parts only") -> PromptCount:
    count = PromptCount(tokens=10, exact=True, source=source, longest=10)
    request = GenerateRequest(
        request_id="r", model="", stream=False, messages=[{"role": "user", "content": list(parts)}]
    )
    return with_media(count, a_model(media_tokens=costs), request)


@pytest.mark.parametrize(
    ("part", "cost"),
    [
        (IMAGE, 576),
        ({"type": "image_url", "image_url": {"url": "data:", "detail": "low"}}, 85),
        ({"type": "image_url", "image_url": {"url": "data:", "detail": "high"}}, 765),
        ({"type": "image_url", "image_url": {"url": "data:", "detail": "auto"}}, 576),
        ({"type": "image_url", "image_url": {"url": "data:", "detail": ["low"]}}, 576),
        ({"type": "input_image", "image_url": "data:", "detail": "low"}, 85),
        (AUDIO, 1500),
        ({"type": "audio_url", "audio_url": {"url": "data:"}}, 1500),
        (VIDEO, None),
        ({"type": "file", "file": {"file_data": "AAAA"}}, 4000),
        ({"type": "input_file", "file_data": "AAAA"}, 4000),
        (TEXT, None),
        ({"type": ["image_url"]}, None),
        ({}, None),
    ],
)
def test_a_part_costs_what_its_kind_and_detail_cost(part, cost):
    """As OpenAI names parts, and as engines add to it; what is unknown has no cost."""
    assert cost_of(part, COSTS) == cost


def test_without_details_every_image_costs_the_same():
    """`per_detail` is an option."""
    low = {"type": "image_url", "image_url": {"url": "data:", "detail": "low"}}
    assert cost_of(low, MediaTokens(image=576)) == 576


def test_the_cost_is_in_the_count_and_says_that_it_is_no_count():
    """The text exactly, and so much for each part."""
    count = counted(TEXT, IMAGE, IMAGE, AUDIO)
    assert (count.tokens, count.longest) == (10 + 576 + 576 + 1500,) * 2
    assert (count.exact, count.source) == (False, "tokenizer x + media")


def test_what_has_no_cost_is_told():
    """It stays as it was where nothing has one."""
    assert counted(IMAGE, VIDEO).source == "tokenizer x + media, not all of it"
    count = counted(IMAGE, costs=MediaTokens())
    assert (count.tokens, count.source) == (10, "tokenizer x, text parts only")
    assert counted(TEXT, source="tokenizer x").exact
