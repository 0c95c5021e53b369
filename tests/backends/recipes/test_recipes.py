"""Every recipe is held to the names its engine's sources know, and every pool to its command line.

Nothing here shows that a recipe runs: the page says which were.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from backends.registry import REGISTRY
from backends.simulated.engine import PROFILES
from gateway.config.loading import load_with_warnings
from tests.backends.recipes import recipes
from tests.backends.recipes.recipes import ENGINES, Command
from tests.conftest import REPO

LAUNCHING = (REPO / "docs" / "launching.md").read_text()
SCRIPTS = sorted((REPO / "backends").glob("*/*.sh"))
RECIPES = [(engine, profile) for engine in ENGINES for profile in recipes.profiles(engine)]


def every_command() -> Iterator[tuple[str, Command]]:
    """From what `launch.sh` would run, from the other scripts, and from the pages; with where it stands."""
    for engine, profile in RECIPES:
        for command in recipes.launched(engine, profile):
            yield f"{engine}/launch.sh {profile}", command
    for script in SCRIPTS:
        if script.name == "build_engine.sh":
            shown = subprocess.run(
                [script, "--print", "/model", "/out"], check=True, capture_output=True, text=True, timeout=30
            ).stdout
            for command in recipes.commands(shown):
                yield script.name, command
        elif script.name != "launch.sh":
            for command in recipes.commands(script.read_text()):
                yield script.name, command
    for engine in ENGINES:
        for block in recipes.fences(recipes.page(engine), "bash"):
            for command in recipes.commands(block, engine):
                yield f"{engine}/README.md", command


COMMANDS = list(every_command())


def test_commands_are_found():
    """Each page, each script and each profile shows at least one, so that none is passed over."""
    places = {place for place, _ in COMMANDS}
    assert {f"{engine}/README.md" for engine in ENGINES} <= places
    assert {f"{engine}/launch.sh {profile}" for engine, profile in RECIPES} <= places
    assert {"slurm.sh", "build_engine.sh"} <= places
    assert {command.program for _, command in COMMANDS} == {
        "trtllm-serve", "trtllm-build", "quantize.py", "launch_triton_server.py", "fill_template.py",
        "tritonserver", "openai_frontend/main.py",
        "text-generation-launcher", "vllm serve", "python3 -m sglang.launch_server", "llama-server",
    }  # fmt: skip


@pytest.mark.parametrize(("place", "command"), COMMANDS, ids=[f"{p}-{c.program}" for p, c in COMMANDS])
def test_every_flag_exists(place: str, command: Command):
    """In each version whose names were written down."""
    assert recipes.unknown(command.program, command.flags) == []
    if command.program == "fill_template.py":
        file, filled = command.words[command.words.index("-i") + 1 :]
        known = f"config.pbtxt {Path(file).parent.name}"
        assert recipes.unknown(known, [pair.split(":")[0] for pair in filled.split(",")]) == []
    if "--speculative-config" in command.words:
        assert recipes.unknown("speculative-config", recipes.speculative(command)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        "trtllm-serve --engine-dir /engine", "trtllm-serve model --fp8", "trtllm-build --fp8 enable",
        "text-generation-launcher --model org/model", "vllm serve m --speculative-model small",
        "llama-server -m f.gguf --draft-max 8", "python3 -m sglang.launch_server --max-num-seqs 4",
        "srun -N 2 trtllm-llmapi-launch trtllm-serve m --engine_dir=/e",
        "X=1 /opt/tritonserver/bin/tritonserver --model_repository=/m",
        "trtllm-serve m --kv_cache_dtype fp8",  # of main alone, not of 1.2
        "trtllm-serve m --config options.yaml",  # not yet of 1.2's release candidates
    ],
)  # fmt: skip
def test_a_flag_that_does_not_exist_is_refused(wrong: str):
    """What guides have, and what only one of two versions knows."""
    (command,) = recipes.commands(wrong)
    assert recipes.unknown(command.program, command.flags)


def test_each_today_of_the_table_exists():
    """The right column of what is written in guides: its commands have flags that exist."""
    table = LAUNCHING.split("## Written in guides")[1]
    rows = [
        line.split(" | ", 1)
        for line in table.splitlines()
        if line.startswith(("| `", "| TGI", "| llama.cpp"))
    ]
    found = [
        command
        for _, today in rows
        for code in re.findall("`([^`]*)`", today)
        for command in recipes.commands(code)
    ]
    assert len(found) >= 8
    for command in found:
        # --backend tensorrt is said to be of 1.2: the flag itself is in both.
        assert recipes.unknown(command.program, command.flags) == [], command
    for wrong in ("trtllm-server", "--engine-dir", "trtllm-build --fp8", "tensorrt_llm.commands.llm",
                  "TGI `--model`", "TGI `--max-input-length`", "triton-request-id"):  # fmt: skip
        assert any(wrong in guides for guides, _ in rows) or f"| Triton header `{wrong}`" in table


@pytest.mark.parametrize(
    ("engine", "profile"),
    [pair for pair in RECIPES if pair[0] == "trtllm" or (pair[0] == "triton" and pair[1] != "classic")],
)
def test_every_option_exists(engine: str, profile: str):
    """The keys of trtllm-serve's options file, and of Triton's model.yaml, which has a section of its own."""
    options = recipes.written(engine, profile)
    triton = options.pop("triton_config", None)
    assert (triton is not None) == (engine == "triton")
    assert triton in (None, {"max_batch_size": 0, "decoupled": True})
    assert recipes.unknown("options", list(recipes.keys(options))) == []
    assert recipes.unknown("options", ["kv_cache_config.free_gpu_mem_fraction"])
    # Text in larger pieces where nobody waits, load to be read everywhere, graphs as wide as the batch.
    assert options["stream_interval"] == (8 if profile == "throughput" else 1)
    assert options["enable_iter_perf_stats"] is True


def limits(engine: str, profile: str) -> dict[str, int]:
    """total, sequences, step budget and, where it has one, prompt: of the command line."""
    command = recipes.launched(engine, profile)[-1]

    def number(flag: str) -> int:
        return int(command.value(flag))

    match engine:
        case "trtllm":
            return {
                "total": number("--max_seq_len"),
                "sequences": number("--max_batch_size"),
                "step": number("--max_num_tokens"),
            }
        case "triton" if profile == "classic":
            bls = next(
                c for c in recipes.launched(engine, profile) if any("tensorrt_llm_bls" in w for w in c.words)
            )
            filled = dict(pair.split(":") for pair in bls.words[-1].split(","))
            assert filled["triton_max_batch_size"] == filled["bls_instance_count"]
            build = next(
                c for place, c in COMMANDS if place == "build_engine.sh" and c.program == "trtllm-build"
            )
            assert build.value("--max_batch_size") == filled["bls_instance_count"]
            return {
                "total": int(build.value("--max_seq_len")),
                "sequences": int(filled["bls_instance_count"]),
                "step": int(build.value("--max_num_tokens")),
            }
        case "triton":
            options = recipes.written(engine, profile)
            return {
                "total": options["max_seq_len"],
                "sequences": options["max_batch_size"],
                "step": options["max_num_tokens"],
            }
        case "tgi":
            return {
                "prompt": number("--max-input-tokens"),
                "total": number("--max-total-tokens"),
                "sequences": number("--max-concurrent-requests") - 8,
                "step": number("--max-batch-prefill-tokens"),
            }
        case "vllm":
            assert number("--max-num-queued-reqs") == number("--max-num-seqs") + 8
            return {
                "total": number("--max-model-len"),
                "sequences": number("--max-num-seqs"),
                "step": number("--max-num-batched-tokens"),
            }
        case "sglang":
            return {
                "total": number("--context-length"),
                "sequences": number("--max-running-requests"),
                "step": number("--chunked-prefill-size"),
            }
        case _:
            slots = number("--parallel")
            assert number("--ctx-size") % slots == 0
            return {
                "total": number("--ctx-size") // slots,
                "sequences": slots,
                "step": number("--batch-size"),
            }


@pytest.mark.parametrize(("engine", "profile"), RECIPES)
def test_a_pool_is_its_command_line(engine: str, profile: str):
    """Lengths, concurrency and the model's name; and the page's table has the same numbers."""
    pool, told = recipes.pools(engine)[profile], limits(engine, profile)
    assert pool["engine"] == engine
    assert pool["limits"]["total"] == told["total"]
    assert pool["limits"]["in_flight"] == told["sequences"]
    assert pool["limits"].get("prompt") == told.get("prompt")
    row = next(
        (line for line in recipes.page(engine).splitlines() if line.startswith(f"| `{profile}` |")), None
    )
    if row is not None:
        assert {f"{told['total']:,}", f"{told['step']:,}"} <= {
            cell.split()[0].rstrip(",") for cell in row.split("|") if cell.strip()
        }
    (name,) = pool["serves"].values() if isinstance(pool["serves"], dict) else pool["serves"]
    command = recipes.launched(engine, profile)[-1]
    match engine:
        case "trtllm" | "vllm":
            assert command.words[0] == name
        case "sglang":
            assert command.value("--model-path") == name
        case "llamacpp":
            assert command.value("--alias") == name
        case "triton":
            assert name == ("tensorrt_llm_bls" if profile == "classic" else "tensorrt_llm")


@pytest.mark.parametrize("engine", ENGINES)
def test_profiles_and_pools_are_one_to_one(engine: str):
    assert set(recipes.pools(engine)) == set(recipes.profiles(engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_loader_takes_the_pools(engine: str, tmp_path: Path):
    """Each page's block as it stands, in a file with nothing but models and rules besides; no warning."""
    blocks = [block for block in recipes.fences(recipes.page(engine), "yaml") if block.startswith("pools:")]
    assert blocks
    for block in blocks:
        pools = yaml.safe_load(block)["pools"]
        names = sorted({name for pool in pools.values() for name in pool["serves"]})
        models = {
            name: {
                "tokenizer": {"kind": "huggingface", "path": str(REPO / "deploy/tokenizers/headgate-mini")},
                "context": max(pool["limits"]["total"] for pool in pools.values() if name in pool["serves"]),
            }
            for name in names
        }
        rules = [
            {
                "name": name,
                "when": {"model": name},
                "pools": [pool for pool in pools if name in pools[pool]["serves"]],
            }
            for name in names
        ]
        file = tmp_path / "routes.yaml"
        file.write_text(block + yaml.safe_dump({"version": 1, "models": models, "rules": rules}))
        snapshot, warnings = load_with_warnings(file, REGISTRY)
        assert set(snapshot.pools) == set(pools)
        assert [problem.message for problem in warnings if "no tenant has a key" not in problem.message] == []


def test_the_loader_takes_the_rules_of_the_page(tmp_path: Path):
    """docs/launching.md's routes with vLLM's pools: every chain serves, no rule is idle."""
    (rules,) = recipes.fences(LAUNCHING, "yaml")
    pools = {f"vllm-{profile}": recipes.pools("vllm")[profile] for profile in ("short", "balanced", "long")}
    model = {"tokenizer": {"kind": "estimate"}, "context": 131072}
    file = tmp_path / "routes.yaml"
    file.write_text(rules + yaml.safe_dump({"version": 1, "models": {"llama3-8b": model}, "pools": pools}))
    snapshot, warnings = load_with_warnings(file, REGISTRY)
    assert [rule.name for rule in snapshot.rules] == ["short", "middle", "long"]
    assert [problem.message for problem in warnings if "no tenant has a key" not in problem.message] == []


CARD, ACTIVATIONS = 80e9, 2.5e9
"""Bytes: an H100 of 80 GB; what a step of 8,192 tokens, graphs and libraries take."""

KvFormula = Callable[[float, float], float]
CACHE: dict[str, KvFormula] = {
    "trtllm": lambda weights, token: 0.9 * (CARD - weights - ACTIVATIONS) / token,
    "triton": lambda weights, token: 0.9 * (CARD - weights - ACTIVATIONS) / token,
    "vllm": lambda weights, token: (0.9 * CARD - weights - ACTIVATIONS) / token,
    "tgi": lambda weights, token: (0.9 * CARD - weights - ACTIVATIONS) / token,
    "sglang": lambda weights, token: (0.85 * CARD - weights) / token,
}


@pytest.mark.parametrize(("engine", "profile"), [pair for pair in RECIPES if pair[0] != "llamacpp"])
def test_the_cache_is_what_the_formula_says(engine: str, profile: str):
    """Rounded down by a tenth at most. Where people wait, each place has room for a full request."""
    token, weights = 2 * 32 * 8 * 128, 9.1e9
    if profile == "big":
        token, weights = 2 * 80 * 8 * 128 // 4, 18.2e9
    elif profile == "draft" and engine != "tgi":
        token, weights = token + 2 * 16 * 8 * 64 * 2, weights + 2.5e9
    fits = CACHE[engine](weights, token)
    if profile == "slice":
        fits = 0.9 * (CARD / 2 - weights - ACTIVATIONS) / token
    bounds = recipes.pools(engine)[profile]["limits"]
    assert 0.9 * fits <= bounds["kv_tokens"] <= fits
    if profile in ("short", "draft", "big", "slice", "classic"):
        assert bounds["in_flight"] * bounds["total"] <= bounds["kv_tokens"]
    else:
        assert bounds["total"] <= bounds["kv_tokens"]


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "llamacpp"])
def test_the_step_budget_keeps_the_pace(engine: str):
    """A full step of `short`, 2,048 cached tokens a stream, by measured constants; `draft` nearly free."""
    h200 = PROFILES["h200"]
    told, pool = limits(engine, "short"), recipes.pools(engine)["short"]
    step, sequences = told["step"], told["sequences"]
    seconds = h200.step_time(step + sequences, step * step / 2, sequences * 2048)
    assert 0.040 < seconds <= pool["slo"]["tpot_p99_ms"] / 1000
    assert limits(engine, "throughput")["step"] == 4 * step
    guesses = {"trtllm": 4, "triton": 4, "vllm": 4, "sglang": 4, "tgi": 3}[engine]
    assert recipes.pools(engine)["draft"]["limits"]["in_flight"] * (1 + guesses) <= h200.hinge_tokens


@pytest.mark.parametrize("engine", ENGINES)
def test_a_page_says_what_it_was_read_from(engine: str):
    """Each version of `upstream/` by number or commit, whether it was run, and the links to the page."""
    page = recipes.page(engine)
    for versions in recipes.upstream(engine).values():
        for version in versions:
            marks = re.findall(
                r"[0-9a-f]{8,9}|\d+\.\d+\.\d+(?:\.post\d+)?", f"{version['version']} {version['source']}"
            )
            assert any(mark in page for mark in marks), version["version"]
    assert "**Run**" in page or "**Checked, not run" in page
    assert f"../backends/{engine}/README.md" in LAUNCHING
    assert f"../backends/{engine}/README.md" in (REPO / "docs" / "engines.md").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=[f"{script.parent.name}/{script.name}" for script in SCRIPTS])
def test_scripts_are_sound(script: Path):
    """They parse, can be started, and shellcheck has nothing to say, where there is one."""
    subprocess.run(["bash", "-n", script], check=True, timeout=30)
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    if shellcheck := shutil.which("shellcheck"):
        told = subprocess.run([shellcheck, script], capture_output=True, text=True, timeout=60)
        assert told.returncode == 0, told.stdout


@pytest.mark.parametrize("engine", ENGINES)
def test_an_unknown_profile_is_refused(engine: str):
    told = subprocess.run(
        [REPO / "backends" / engine / "launch.sh", "--print", "fast", "/models/repository"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert (told.returncode, told.stderr) == (2, "no such profile: fast\n")


@pytest.mark.parametrize(
    "file", [*(f"backends/{engine}/README.md" for engine in ENGINES), "docs/launching.md"]
)
def test_links_lead_somewhere(file: str):
    """To files that exist, and to headings that do."""
    text = (REPO / file).read_text()
    for target in re.findall(r"\]\(([^)#]*(?:#[^)]*)?)\)", text):
        path, _, heading = target.partition("#")
        linked = ((REPO / file).parent / path).resolve() if path else REPO / file
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert heading in {
                re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles
            }, target
