"""OpenAI's traffic as `text_generation`: what our requests to TGI's native routes are held against.

The judge is Hugging Face's own client (`InferenceClient.text_generation`, huggingface_hub) and its types,
which are generated from TGI's specification. What it sends for the arguments that mean the same, we send;
what the engine answers it, its types can read; and the text that it gets is the text that our clients get.
"""

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, get_args

import httpx
import msgspec
import pytest
from huggingface_hub import (
    InferenceClient,
    TextGenerationInput,
    TextGenerationInputGenerateParameters,
    TextGenerationOutput,
    TextGenerationOutputDetails,
    TextGenerationOutputFinishReason,
    TextGenerationOutputToken,
    TextGenerationStreamOutput,
    TextGenerationStreamOutputStreamDetails,
    TextGenerationStreamOutputToken,
)

from backends.contract import GenerateRequest, HttpRequest
from backends.registry import REGISTRY
from tests.end_to_end.world import world

ADAPTER = REGISTRY.adapter("tgi", {})
PROMPT = "What does a headgate do?"
SCHEMA = {"type": "object", "properties": {"gate": {"type": "string"}}, "required": ["gate"]}
WRAPPED = {"type": "json_schema", "json_schema": {"name": "gate", "schema": SCHEMA}}

CASES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "nothing": ({}, {"do_sample": True}),
    "bounds": ({"max_tokens": 24}, {"do_sample": True, "max_new_tokens": 24}),
    "sampling": (
        {"temperature": 0.7, "top_p": 0.9, "seed": 7, "frequency_penalty": 0.5},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "seed": 7, "frequency_penalty": 0.5},
    ),
    "extensions": (
        {"top_k": 40, "typical_p": 0.9, "repetition_penalty": 1.2},
        {"do_sample": True, "top_k": 40, "typical_p": 0.9, "repetition_penalty": 1.2},
    ),
    "greedy": ({"temperature": 0}, {"do_sample": False}),
    "off": (
        {"temperature": 1, "top_p": 1, "top_k": -1, "presence_penalty": 0},
        {"do_sample": True, "temperature": 1},
    ),
    "one stop": ({"stop": ("\n",)}, {"do_sample": True, "stop": ["\n"]}),
    "stops": ({"stop": ("END", "\n\n")}, {"do_sample": True, "stop": ["END", "\n\n"]}),
    "a schema": (
        {"response_format": WRAPPED},
        {"do_sample": True, "grammar": {"type": "json", "value": SCHEMA}},
    ),
    "a regex": (
        {"guided_regex": "[a-z]+"},
        {"do_sample": True, "grammar": {"type": "regex", "value": "[a-z]+"}},
    ),
    "an adapter": ({"model": "french"}, {"do_sample": True, "adapter_id": "french"}),
}  # fmt: skip
"""OpenAI's parameters, and the arguments of `text_generation` that mean the same."""


def _ours(given: Mapping[str, Any], *, stream: bool = False) -> HttpRequest:
    """What the adapter sends for OpenAI's parameters."""
    rest = dict(given)
    return ADAPTER.encode(
        GenerateRequest(
            request_id="r",
            model=rest.pop("model", "tgi"),
            stream=stream,
            prompt=PROMPT,
            max_tokens=rest.pop("max_tokens", None),
            stop=rest.pop("stop", ()),
            parameters=rest,
        )
    )


class _Recorder(BaseHTTPRequestHandler):
    """Keeps what it is sent."""

    bodies: list[bytes]

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        body = b'{"generated_text": "ok"}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Says nothing."""


def _theirs(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What `InferenceClient.text_generation` sends."""
    recorder = type("Recorder", (_Recorder,), {"bodies": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), recorder)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with InferenceClient(f"http://127.0.0.1:{server.server_address[1]}", token="none") as client:
            client.text_generation(PROMPT, details=True, return_full_text=False, **arguments)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    (body,) = recorder.bodies  # type: ignore[attr-defined]  # made two lines above
    sent: dict[str, Any] = msgspec.json.decode(body)
    return sent


def _without_nulls(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


@pytest.mark.parametrize("name", CASES)
def test_we_send_what_their_client_sends(name: str) -> None:
    """The same keys with the same values, and no key that the specification does not know."""
    given, arguments = CASES[name]
    request = _ours(given)
    sent, theirs = json.loads(request.body), _theirs(arguments)
    assert request.path == "/generate"
    assert sent == {"inputs": theirs["inputs"], "parameters": _without_nulls(theirs["parameters"])}
    known = {field.name for field in dataclasses.fields(TextGenerationInputGenerateParameters)}
    assert sent["parameters"].keys() <= known
    parsed = TextGenerationInput.parse_obj_as_instance(request.body)
    assert _without_nulls(parsed.parameters or {}) == sent["parameters"]


def test_a_stream_is_asked_for_by_its_route() -> None:
    """Their client posts to `/` with `stream`; the engine's own route for it takes no such key."""
    request = _ours({}, stream=True)
    assert request.path == "/generate_stream"
    assert "stream" not in json.loads(request.body)


def _fits(value: Any, of: type) -> None:
    """A strict reading: `parse_obj` takes whatever comes, and leaves None for what is missing."""
    fields = {field.name: field for field in dataclasses.fields(of)}
    optional = {name for name, field in fields.items() if field.default is None}
    assert value.keys() <= set(fields), (of, value)
    assert set(fields) - optional <= value.keys(), (of, value)


async def test_what_the_engine_answers_is_what_their_types_read(tmp_path: Path) -> None:
    """The simulated TGI, held to the types that are generated from TGI's specification."""
    reasons = set(get_args(TextGenerationOutputFinishReason))
    async with world(tmp_path, {"pool": {"kind": "tgi", "served": "tgi"}}) as here:
        async with httpx.AsyncClient(base_url=here.engine().url, timeout=20) as http:
            asked = _ours({"max_tokens": 12})
            whole = (await http.post(asked.path, content=asked.body, headers=asked.headers)).json()
            asked = _ours({"max_tokens": 12}, stream=True)
            streamed = (await http.post(asked.path, content=asked.body, headers=asked.headers)).text
        _fits(whole, TextGenerationOutput)
        output = TextGenerationOutput.parse_obj_as_instance(whole)
        assert output.details is not None
        assert output.details.finish_reason in reasons
        _fits(whole["details"], TextGenerationOutputDetails)
        for token in whole["details"]["tokens"]:
            _fits(token, TextGenerationOutputToken)
        events = [json.loads(line.removeprefix("data:")) for line in streamed.splitlines() if line]
        for event in events:
            _fits(event, TextGenerationStreamOutput)
            _fits(event["token"], TextGenerationStreamOutputToken)
        last = TextGenerationStreamOutput.parse_obj_as_instance(events[-1])
        assert last.generated_text == output.generated_text
        assert last.details is not None
        assert last.details.finish_reason in reasons
        _fits(events[-1]["details"], TextGenerationStreamOutputStreamDetails)


@pytest.mark.parametrize("name", ["bounds", "greedy", "sampling", "a stop that is found"])
async def test_their_client_and_ours_get_the_same_text(name: str, tmp_path: Path) -> None:
    """OpenAI's SDK through the gateway, `text_generation` straight at the engine: equal text, count and
    reason, whole and streamed."""
    given, arguments = CASES.get(name, ({}, {"do_sample": True}))
    given, arguments = {"max_tokens": 24, **given}, {"max_new_tokens": 24, **arguments}
    async with world(tmp_path, {"pool": {"kind": "tgi", "served": "tgi"}}) as here, here.sdk() as sdk:
        if name == "a stop that is found":
            plain = await sdk.completions.create(model="m", prompt=PROMPT, **given)
            given["stop"] = arguments["stop"] = [plain.choices[0].text.split()[5]]

        def straight() -> tuple[TextGenerationOutput, list[TextGenerationStreamOutput]]:
            with InferenceClient(here.engine().url, token="none") as client:
                whole = client.text_generation(PROMPT, details=True, **arguments)
                pieces = client.text_generation(PROMPT, details=True, stream=True, **arguments)
                return whole, list(pieces)

        theirs, pieces = await asyncio.to_thread(straight)
        ours = await sdk.completions.create(model="m", prompt=PROMPT, **given)
        stream = await sdk.completions.create(model="m", prompt=PROMPT, stream=True, **given)
        text = "".join([choice.text async for chunk in stream for choice in chunk.choices])
    assert theirs.details is not None
    reason = theirs.details.finish_reason
    visible = theirs.generated_text
    for stop in given.get("stop", ()):
        assert reason == "stop_sequence"
        visible = visible.split(stop)[0]  # TGI leaves it in the text
    assert ours.choices[0].text == text == visible != ""
    assert ours.choices[0].finish_reason == ("length" if reason == "length" else "stop")
    assert ours.usage is not None
    assert ours.usage.completion_tokens == theirs.details.generated_tokens
    assert "".join(piece.token.text for piece in pieces if not piece.token.special) == theirs.generated_text
