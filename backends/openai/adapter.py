"""The adapter for `engine: openai`."""

from backends.contract import Answers, Health, Metadata
from backends.openai import metadata, parameters
from backends.openai_adapter import OpenAiDialectAdapter
from backends.options import NoOptions

__all__ = ["OpenAiAdapter"]


class OpenAiAdapter(OpenAiDialectAdapter):
    """An engine whose shapes are OpenAI's."""

    kind = "openai"
    canonical = True
    tables = parameters.TABLES

    def __init__(self, options: NoOptions | None = None) -> None:
        pass

    def read_health(self, status: int, body: bytes) -> Health:
        """Asked on the model list, for /health is not OpenAI's. While it loads, an engine may answer 503 on
        every route: alive, not ready."""
        return Health(ready=status == 200, live=True)

    def read_metadata(self, answers: Answers) -> Metadata:
        return metadata.read_metadata(answers)
