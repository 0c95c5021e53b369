"""The committed tokenizer is what the script makes of the corpus, and has the shape of Llama 3's."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from tokenizers import Tokenizer

DIRECTORY = Path(__file__).resolve().parents[3] / "deploy" / "tokenizers"
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_headgate_mini", DIRECTORY / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_training_again_gives_the_same_bytes(script, tmp_path):
    """A changed corpus or script must be committed together with its output."""
    script.write(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (DIRECTORY / "headgate-mini" / name).read_bytes(), name


def test_special_tokens_end_the_vocabulary(script):
    """As in Llama 3, and no text can reach them through merges."""
    tokenizer = Tokenizer.from_file(str(DIRECTORY / "headgate-mini" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == script.VOCABULARY
    first = script.VOCABULARY - len(script.SPECIAL_TOKENS)
    assert [tokenizer.token_to_id(token) for token in script.SPECIAL_TOKENS] == list(
        range(first, script.VOCABULARY)
    )


def test_every_byte_has_a_token():
    """So any text round-trips, emoji and broken-looking input included."""
    tokenizer = Tokenizer.from_file(str(DIRECTORY / "headgate-mini" / "tokenizer.json"))
    text = "".join(map(chr, range(32, 0x250))) + "🌊\u2028\ud7ff\U0010ffff\n\t  x"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_bos_is_added_once():
    tokenizer = Tokenizer.from_file(str(DIRECTORY / "headgate-mini" / "tokenizer.json"))
    assert tokenizer.encode("The gate").tokens == ["<|begin_of_text|>", "The", "Ġgate"]
    assert tokenizer.encode("The gate", add_special_tokens=False).tokens == ["The", "Ġgate"]
