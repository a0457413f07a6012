"""benchmarks/matrix.py: what is asked of the engines, and what is said of their answers."""

from __future__ import annotations

import argparse
import sys

import pytest

pytest.importorskip("apr_backend_cpu", reason="its levels are the table's")

from apr_core.cli.import_ import run_import
from apr_core.format import AprFile
from benchmarks.checkpoints import SIZES, write
from benchmarks.matrix import missing, wanted
from benchmarks.speed.figures import Figures, Model, Phase, key
from benchmarks.speed.heat_map import colour, svg
from benchmarks.speed.levels import ALL, levels_here
from benchmarks.speed.processes import EngineFailed, Player, Running, computing
from benchmarks.speed.roofline import Work, body_of, multiply_rate
from benchmarks.speed.tables import markdown
from benchmarks.speed.turns import Quiet, Turns
from tests import tiny_checkpoints

pytestmark = pytest.mark.needs_plugins
MODEL, LEVEL = Model("0.8b", "q8_0"), "x86-64-v3"
PREFILL, DECODE = Phase("prefill", 256), Phase("decode", 8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    run_import(str(tiny_checkpoints.write(folder / "hf")), folder / "tiny.apr", "q8_0")
    return folder / "tiny.apr"


def measured():
    figures = Figures("a machine", 2)
    figures.bandwidth[str(MODEL)] = [30e9, 10e9, 20e9]
    figures.work[str(MODEL)] = {"weight_bytes": 1_000_000_000, "multiply_adds": 500_000_000}
    figures.rates[f"{LEVEL} bytes"] = 300e9
    for engine, speed in {"apr": 120.0, "llama.cpp": 60.0, "ik_llama.cpp": 80.0}.items():
        for phase in (PREFILL, DECODE):
            figures.add(key(MODEL, engine, LEVEL, phase), speed, 0.0)
    return figures


def test_ratios_are_to_the_better_peer_and_shares_of_what_limits_the_phase():
    figures = measured()
    assert figures.ratio(MODEL, LEVEL, PREFILL) == 1.5
    assert figures.share(MODEL, LEVEL, PREFILL) == pytest.approx(120 * 0.5 / 300)
    assert figures.share(MODEL, LEVEL, DECODE) == pytest.approx(1e9 * 120 / 8 / 20e9)


def test_figures_beside_busy_processes_say_so():
    figures = measured()
    figures.beside = 2
    assert "Beside 2 processes that only compute." in markdown(figures, [MODEL], [LEVEL], [DECODE])
    with computing(2) as processes:
        assert [process.poll() for process in processes] == [None, None]
    assert all(process.returncode for process in processes)


def test_a_cell_that_was_not_measured_is_a_dash_with_its_reason():
    figures = measured()
    figures.failures[f"{MODEL} ik_llama.cpp x86-64-v2 decode 8"] = "no such format"
    page = markdown(figures, [MODEL], [LEVEL], [PREFILL, Phase("decode", 1)])
    assert "| 0.8b | q8_0 | x86-64-v3 | 120 | 60.0 | 80.0 | 1.50 | 20% |" in page
    assert "decode 8: no such format" in page
    del figures.speeds[key(MODEL, "ik_llama.cpp", LEVEL, PREFILL)]
    page = markdown(figures, [MODEL], [LEVEL], [PREFILL])
    assert "| 120 | 60.0 | - | 2.00 |" in page


def test_a_picture_shows_every_cell_and_is_blue_where_apr_is_faster():
    drawn = svg(measured(), [MODEL], [LEVEL], [PREFILL, DECODE])
    assert drawn.count(">1.50<") == 2
    red, _, blue = (int(colour(1.8)[i : i + 2], 16) for i in (1, 3, 5))
    assert blue > red
    assert colour(0.5) == colour(0.1)


@pytest.mark.parametrize(
    ("only", "names", "expected"),
    [
        (None, ("0.8b", "bf16", "generic"), True),
        (None, ("9b", "bf16", "generic"), False),
        ([["*", "bf16"]], ("2b", "bf16", "x86-64-v2"), True),
        ([["*", "bf16"]], ("9b", "bf16", "x86-64-v2"), False),
        ([["9b"]], ("9b", "bf16", "x86-64-v2"), True),
        ([["0.8b", "*", "*-v3"]], ("0.8b", "bf16", "x86-64-v2"), False),
    ],
)
def test_what_is_asked_for_may_have_wildcards_but_large_sizes_are_named(only, names, expected):
    assert wanted(only, *names) is expected


def test_what_was_measured_is_not_measured_again(tmp_path):
    measured().save(tmp_path / "figures.json")
    figures = Figures.load(tmp_path / "figures.json")
    assert figures == measured()
    options = argparse.Namespace(phases=[PREFILL, DECODE], rounds=1)
    assert missing(figures, MODEL, [LEVEL], options) == []
    assert missing(figures, MODEL, [LEVEL, "x86-64-v2"], options) == [PREFILL, DECODE]
    options.rounds = 2
    assert missing(figures, MODEL, [LEVEL], options) == [PREFILL, DECODE]


@pytest.mark.parametrize(
    ("engine", "python", "reason"),
    [("none such", sys.executable, "KeyError"), ("apr", "/bin/false", "ended with 1")],
)
def test_an_engine_that_cannot_start_says_why(engine, python, reason, tiny):
    with pytest.raises(EngineFailed, match=reason):
        Running(Player(engine, (LEVEL,), python), tiny, 1)


def test_a_method_that_fails_leaves_the_engine_running(tiny):
    running = Running(Player("apr", (LEVEL,), sys.executable), tiny, 1)
    try:
        with pytest.raises(EngineFailed, match="holds 1024"):
            running.ask("prefill", count=2000)
        assert running.ask("prefill", count=20) > 0
        assert running.ask("decode", sequences=2, prompt=3, most=4, seconds=9.0) > 0
    finally:
        running.close()


@pytest.mark.parametrize("together", [True, False])
def test_players_are_measured_in_turns_and_a_failure_costs_its_phase_only(tiny, together):
    figures = Figures("a machine", 1)
    player = Player("apr", ("x86-64-v2", LEVEL), sys.executable)
    absent = Player("llama.cpp", (LEVEL,), "/bin/false")
    too_long = Phase("prefill", 2000)
    turns = Turns(MODEL, {player: tiny, absent: tiny}, figures, together, Quiet())
    turns.play([too_long, DECODE], rounds=2)
    for level in player.levels:
        assert len(figures.speeds[key(MODEL, "apr", level, DECODE)]) == 2
        assert "holds 1024" in figures.failures[key(MODEL, "apr", level, too_long)]
    assert "ended with 1" in figures.failures[key(MODEL, "llama.cpp", LEVEL, DECODE)]
    assert figures.notes == {}


def test_the_head_is_read_by_every_step_and_multiplied_by_no_token_of_a_prompt(tiny):
    wide = tiny_checkpoints.Tiny()
    matrices = {n: s for n, s in tiny_checkpoints.shapes(wide) if len(s) == 2 and "mtp" not in n}
    products = sum(r * c for n, (r, c) in matrices.items() if "embed_tokens" not in n)
    work = Work.of(tiny)
    assert work.multiply_adds == products
    # q8_0 has 34 bytes for 32 weights; gates of a few rows may be kept in more
    assert work.weight_bytes >= (products + wide.vocab * wide.hidden) * 34 // 32


def test_the_rate_of_a_level_is_measured_where_its_instructions_are_known():
    name = levels_here()[0]
    rate = multiply_rate(ALL[name], "bytes", 1)
    assert (rate is None) == (body_of(ALL[name], "bytes") is None)
    assert rate is None or rate > 0


@pytest.mark.parametrize(("name", "family"), [("qwen2-0.5b", "qwen2"), ("0.8b", "qwen3_5")])
def test_a_checkpoint_of_a_size_has_what_its_family_needs(name, family, tmp_path, monkeypatch):
    small = {"hidden": 64, "layers": 4, "intermediate": 96, "heads": 2, "kv_heads": 1}
    monkeypatch.setitem(SIZES, name, type(SIZES[name])(**small, head_dim=32, vocab=300))
    target = tmp_path / "small.apr"
    run_import(str(write(name, tmp_path / "hf")), target, "bf16")
    with AprFile.open(target) as file:
        assert file.metadata["apr.family"] == family
        assert set(file.tensors) == {tensor for tensor, _ in SIZES[name].shapes()}
