"""One tokenizer for all tests of the simulated engines."""

import pytest

from backends.simulated.tokens import EngineTokenizer, default_tokenizer_directory


@pytest.fixture(scope="session")
def tokenizer() -> EngineTokenizer:
    return EngineTokenizer.load(default_tokenizer_directory())
