"""`models`: aliases, tokenizers, bounds that leave something to each other."""

from collections.abc import Mapping

from backends.contract import EngineAdapter
from gateway.config import schema
from gateway.config.checking.checks import Checks
from gateway.config.positions import KeyPath
from gateway.config.reading import Read

_OWN_FIELDS = frozenset(
    {"model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens"}
)
"""Body fields that the gateway decides, and so no defaults."""


class ModelChecks(Checks):
    def aliases(self) -> dict[str, str]:
        owners: dict[str, KeyPath] = {}
        aliases: dict[str, str] = {}
        for name, model in self._file.models.items():
            for index, alias in enumerate(model.item.aliases):
                path = (*model.path, "aliases", index)
                if alias in self._file.models:
                    self._report.value_error(path, "is the name of a model already")
                elif alias == "*":
                    self._report.value_error(path, "is no alias; declare a model of this name")
                elif alias in owners:
                    line = self._report.line(owners[alias])
                    self._report.value_error(path, f"is an alias already, in line {line}")
                else:
                    owners[alias] = path
                    aliases[alias] = name
        return aliases

    def check(self, read: Read[schema.Model]) -> None:
        model, path = read.item, read.path
        tokenizer = model.tokenizer
        if isinstance(tokenizer, schema.HuggingFaceTokenizer):
            self._exists((*path, "tokenizer", "path"), tokenizer.path, "directory")
            if tokenizer.chat_template is not None:
                self._exists((*path, "tokenizer", "chat_template"), tokenizer.chat_template, "file")
        elif isinstance(tokenizer, schema.TiktokenTokenizer) and tokenizer.path is not None:
            self._exists((*path, "tokenizer", "path"), tokenizer.path, "file")
        elif isinstance(tokenizer, schema.EstimateTokenizer) and model.count in ("exact", "auto"):
            self._report.value_error((*path, "count"), "wants a tokenizer that counts; `estimate` does not")
        default, ceiling, context = model.max_tokens.default, model.max_tokens.ceiling, model.context
        if default and ceiling and default > ceiling:
            self._report.value_error((*path, "max_tokens", "default"), f"is more than the ceiling, {ceiling}")
        if context and model.max_tokens.margin >= context:
            self._report.value_error(
                (*path, "max_tokens", "margin"), f"leaves nothing of the context, {context} tokens"
            )
        media = model.media_tokens
        if media.image is None and media.per_detail != schema.PerDetail():
            self._report.error(
                (*path, "media_tokens", "per_detail"), "is of images; `image` is for those without", key=True
            )
        for key, tokens in (("default", default), ("ceiling", ceiling)):
            if tokens and context and tokens > context:
                message = f"more than the model's context of {context} tokens; that is the bound then"
                self._report.warn((*path, "max_tokens", key), message)
        for field in sorted(_OWN_FIELDS.intersection(model.defaults)):
            hint = "use max_tokens.default" if field.startswith("max_") else ""
            self._report.error(
                (*path, "defaults", field), "the gateway sets this field itself", hint, key=True
            )

    def check_engine_tokenizer(self, read: Read[schema.Model], adapters: Mapping[str, EngineAdapter]) -> None:
        """Whether the engines that are to count for a model can."""
        tokenizer, path = read.item.tokenizer, (*read.path, "tokenizer", "pool")
        if not isinstance(tokenizer, schema.EngineTokenizer) or "pools" in self._file.unreadable:
            return
        pool = self._file.pools.get(tokenizer.pool)
        if pool is None:
            self._report.unknown(path, "a pool", self._file.pools)
            return
        name = read.path[-1]
        if name not in pool.item.serves and self._sound(pool.path, "serves"):
            self._report.value_error(path, f"does not serve {name}")
        adapter = adapters.get(tokenizer.pool)
        if adapter is None:
            return
        kind = pool.item.engine
        if adapter.tokenize_request("", text="") is None:
            message = f"cannot count: {kind} has no question for it"
            self._report.value_error(path, message, "use huggingface, tiktoken or estimate")
        elif adapter.tokenize_request("", messages=[]) is None:
            self._report.warn(path, f"{kind} counts texts only; chats are estimated")
        if pool.item.state == "cold" and pool.item.wake is None:
            self._report.warn(path, "the pool is cold: it is not asked, and prompts are estimated")
