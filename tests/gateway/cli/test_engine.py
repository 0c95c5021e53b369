"""`headgate engine`: its choices are those of the simulated engines, and they reach them."""

import importlib
import re
from typing import get_args

import pytest
from typer.testing import CliRunner

from backends.simulated import options
from backends.simulated.faults import FAULTS
from backends.simulated.options import ServerOptions
from backends.simulated.server import DIALECTS
from gateway.cli import app

command = importlib.import_module("gateway.cli.engine")  # the package has a function of this name


def test_the_choices_are_the_real_ones():
    """The command line spells them out for its help; nothing may be missing or left over."""
    assert get_args(command.Kind) == tuple(DIALECTS)
    assert command.Notice == options.Notice
    assert command.TextMode == options.TextMode
    assert command.Vocabulary == options.Vocabulary
    assert all(name in command.FAULT_HELP for name in FAULTS)


@pytest.fixture
def started(monkeypatch):
    """Run the command; what it would have started."""
    calls = []
    monkeypatch.setattr(command, "run", lambda *args, **kwargs: calls.append((args, kwargs)))

    def started(*arguments):
        result = CliRunner().invoke(app, ["engine", *arguments])
        assert result.exit_code == 0, result.output
        return calls[-1]

    return started


@pytest.mark.parametrize("kind", list(DIALECTS))
def test_defaults_are_the_server_s(started, kind):
    """Without options an engine is what `ServerOptions` says."""
    (given, profile), rest = started("--kind", kind)
    assert (given, profile) == (kind, "demo")
    known = ServerOptions()
    passed = {name: value for name, value in rest.items() if hasattr(known, name) and name != "port"}
    assert passed == {name: getattr(known, name) for name in passed}
    assert passed.keys() >= {"vocabulary", "decoupled", "metrics", "loading_s", "reasoning_tokens"}


def test_options_reach_the_engine(started):
    _, passed = started(
        "--kind", "triton", "--vocabulary", "llmapi", "--no-decoupled", "--keep-alive", "2.5", "--no-metrics",
        "--loading", "3", "--reasoning-tokens", "7", "--fault", "drip=2*1", "--fault", "hang",
    )  # fmt: skip
    assert (passed["vocabulary"], passed["decoupled"], passed["keep_alive_s"]) == ("llmapi", False, 2.5)
    assert (passed["metrics"], passed["loading_s"], passed["reasoning_tokens"]) == (False, 3.0, 7)
    assert passed["faults"] == ["drip=2*1", "hang"]


@pytest.mark.parametrize("arguments", [("--kind", "h2o"), ("--kind", "tgi", "--vocabulary", "latin"), ()])
def test_bad_choices_are_refused(arguments):
    assert CliRunner().invoke(app, ["engine", *arguments]).exit_code == 2


def test_what_cannot_start_says_why():
    result = CliRunner().invoke(app, ["engine", "--kind", "tgi", "--fault", "explode"])
    assert result.exit_code == command.COULD_NOT_START
    assert re.search("unknown fault 'explode'", result.output)
