"""`headgate serve --upstream`: no file. What answers is recognised, written as routes.yaml, and served.

Upstreams that are missing are asked again while the gateway serves; each that comes is taken in by a reload.
"""

import asyncio
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from gateway.app import Gateway, discovery_of, load_snapshot
from gateway.config.drafting import TENANT, Found, draft
from gateway.config.problems import Problem
from gateway.config.snapshot import Model, Pool, Snapshot
from gateway.serving import Addresses
from gateway.tenants.authentication import digest_of, new_key

RETRY = 2.0
"""Seconds between two looks for what is missing, while nothing is served."""
RETRY_SERVING = 10.0
"""The same, while others are served."""
SOURCE = Path("--upstream")
"""Stands for the file in messages; paths count from the working directory."""


class NothingThere(Exception):
    """No upstream answered in the time there was."""


class Upstreams:
    """The upstreams of a command line, and the routes.yaml that stands for those that answer."""

    def __init__(
        self, urls: Iterable[str], *, listen: str, admin: str, tokenizers: Mapping[str, str]
    ) -> None:
        """Raises ValueError for a URL that no replica may have."""
        self._discovery = discovery_of(urls)
        self._listen = listen
        self._admin = admin
        self._tokenizers = tokenizers
        self._told: dict[int, str] = {}
        self.key = new_key()

    async def wait(self, seconds: float) -> None:
        """Look until at least one is recognised, and say what each is. Raises NothingThere."""
        end = time.monotonic() + seconds
        while True:
            await self._look()
            if self._discovery.found:
                return
            left = end - time.monotonic()
            if left <= 0:
                raise NothingThere(f"no upstream answered as an engine within {seconds:g} s (see --wait)")
            pause = min(RETRY, left)
            _say(f"headgate: nothing to serve yet; again in {pause:.0f} s, for {left:.0f} s more")
            await asyncio.sleep(pause)

    def text(self) -> str:
        """The routes.yaml of what is there."""
        return draft(
            self._discovery.found,
            digest_of(self.key),
            listen=self._listen,
            admin=self._admin,
            tokenizers=self._tokenizers,
        )

    def load(self, *, force_open: bool = False) -> tuple[Snapshot, tuple[Problem, ...]]:
        """That text through the loader of every routes.yaml.

        Raises ConfigInvalid, and ValueError for a tokenizer of a model that nobody can still bring.
        """
        snapshot, warnings = load_snapshot(SOURCE, force_open=force_open, content=self.text().encode())
        unknown = sorted(self._tokenizers.keys() - snapshot.models.keys())
        if unknown and not self._discovery.missing:
            raise ValueError(
                f"--tokenizer: no model {', '.join(unknown)}; there is {', '.join(snapshot.models)}"
            )
        return snapshot, warnings

    @property
    def missing(self) -> tuple[str, ...]:
        """Addresses that have not answered so far."""
        return tuple(missing.url for missing in self._discovery.missing)

    async def follow(self, gateway: Gateway) -> None:
        """Take in those that come later, until none is missing."""
        while self._discovery.missing:
            await asyncio.sleep(RETRY_SERVING)
            if await self._look():
                await gateway.reloader.reload("upstream")

    async def _look(self) -> tuple[Found, ...]:
        new = await self._discovery.look()
        for found in new:
            self._told.pop(found.number, None)
            _say(_described(found))
        for missing in self._discovery.missing:
            line = f"{missing.url} is not served: {missing.why}; it is asked again"
            if self._told.get(missing.number) != line:
                _say(line)
            self._told[missing.number] = line
        return new

    def announce(self, snapshot: Snapshot, addresses: Addresses) -> None:
        """How to use it: the key, a line for the shell, lines for the SDK."""
        _say(f"  key of tenant {TENANT}, shown only now: {self.key}")
        models = list(snapshot.models.values())
        for model in models:
            if not _chats(model, snapshot):
                _say(
                    f"  {model.name}: only /v1/completions, no chat: its engine takes text, and nobody told "
                    f"its chat template. With the tokenizer's directory: --tokenizer {model.name}=DIRECTORY"
                )
        model = next((model for model in models if _chats(model, snapshot)), models[0])
        url = f"{addresses.data}/v1"
        if _chats(model, snapshot):
            path = "chat/completions"
            asked = '"messages": [{"role": "user", "content": "Hello!"}]'
            call = 'client.chat.completions.create(messages=[{"role": "user", "content": "Hello!"}],'
        else:
            path, asked, call = (
                "completions",
                '"prompt": "Hello!"',
                'client.completions.create(prompt="Hello!",',
            )
        _say(
            f"""
  curl -N {url}/{path} -H 'authorization: Bearer {self.key}' \\
    -H 'content-type: application/json' -d '{{"model": "{model.name}", "stream": true, {asked}}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}", api_key="{self.key}")
  for chunk in {call} model="{model.name}", stream=True):
      print(chunk)

  To keep this as a file, with a key of its own: the same command with --print-config > routes.yaml
"""
        )


def _chats(model: Model, snapshot: Snapshot) -> bool:
    """Whether somebody has its chat template: an engine that serves it, or its tokenizer."""
    pools: Iterable[Pool] = (pool for pool in snapshot.pools.values() if model.name in pool.serves)
    if model.tokenizer.kind not in ("engine", "estimate"):
        return True
    return any(pool.adapter.applies_template for pool in pools)


def _described(found: Found) -> str:
    identified = found.identified
    told = identified.limits
    limits = {
        "context": told.context_tokens,
        "prompt": told.prompt_tokens,
        "requests at a time": told.in_flight,
    }
    shown = ", ".join(f"{name} {count}" for name, count in limits.items() if count) or "none told"
    models = list(identified.models)
    more = f" and {len(models) - 8} more" if len(models) > 8 else ""
    version = _printable(identified.version or "")
    return (
        f"{found.url} is {' '.join(filter(None, (identified.kind, version)))} ({identified.how}): "
        f"models {', '.join(models[:8])}{more}; limits: {shown}"
    )


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:80])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
