"""Tokenizer directories as an engine reads them."""

import json

import pytest

from backends.simulated.tokens import Detokenizer, EngineTokenizer, TemplateError, default_tokenizer_directory


def test_pieces_are_the_bytes_of_the_text(tokenizer):
    text = "Вода, 水闸 and 🌊 def f():\n\treturn"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(tokenizer.pieces[token_id] for token_id in ids) == text.encode()


def test_detokenizer_holds_incomplete_characters(tokenizer):
    """A character in three tokens comes out with its last one, and never as U+FFFD."""
    by_byte = {piece: token_id for token_id, piece in enumerate(tokenizer.pieces) if len(piece) == 1}
    detokenizer = Detokenizer(tokenizer)
    texts = [detokenizer.add(by_byte[bytes([byte])]) for byte in "水a".encode()]
    assert texts == ["", "", "水", "a"]
    assert detokenizer.add(tokenizer.eos_id) == ""
    detokenizer.add(by_byte[b"\xe6"])
    assert detokenizer.held == b"\xe6"


def test_chat_template_is_llama_3s(tokenizer):
    call = {"function": {"name": "f", "arguments": {"a": "б"}}}
    messages = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4"},
    ]  # fmt: skip
    assert tokenizer.render(messages) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
        '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "f", "parameters": {"a": "б"}}<|eot_id|>'
        "<|start_header_id|>tool<|end_header_id|>\n\n4<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert tokenizer.render(messages[:1], add_generation_prompt=False).endswith("brief.<|eot_id|>")


def test_template_refusals_are_one_error(tokenizer):
    with pytest.raises(TemplateError, match="reads text only"):
        tokenizer.render([{"role": "user", "content": [{"type": "image_url"}]}])
    with pytest.raises(TemplateError):
        tokenizer.render([{"content": "no role"}])


def test_a_directory_without_template_or_configuration(tmp_path):
    """Both files may be missing; the template may stand in the configuration."""
    source = default_tokenizer_directory()
    (tmp_path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    bare = EngineTokenizer.load(tmp_path)
    assert bare.eos_id is None
    with pytest.raises(TemplateError, match="no chat template"):
        bare.render([{"role": "user", "content": "x"}])
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ messages[0].content }}", "eos_token": {"content": "<|eot_id|>"}})
    )
    loaded = EngineTokenizer.load(tmp_path)
    assert loaded.render([{"role": "user", "content": "x"}]) == "x"
    assert loaded.eos_id == loaded.token_to_id("<|eot_id|>")


def test_templates_are_sandboxed(tmp_path):
    source = default_tokenizer_directory()
    (tmp_path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    with pytest.raises(TemplateError):
        EngineTokenizer.load(tmp_path).render([])
