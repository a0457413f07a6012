"""What the README promises: few lines, small errors, and the same answer in any batch."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

from apr_core import SamplingParams, load
from apr_core.plugin import QuantizationError
from apr_quant_nf4.codec import NF4
from apr_quant_nf4.hooks import GROUP, LAYOUT, LEVELS


@pytest.fixture
def bell():
    return np.random.default_rng(3).standard_normal((512, 1024)).astype(np.float32)


def relative_rmse(actual, expected):
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


def plain(x):
    """NF4 as QLoRA has it, with exact scales: each group over its largest magnitude."""
    groups, levels = x.reshape(-1, GROUP), np.array(LEVELS, np.float32)
    top = np.abs(groups).max(-1, keepdims=True)
    codes = np.abs((groups / top)[..., None] - levels).argmin(-1)
    return (levels[codes] * top).reshape(x.shape)


def test_the_package_has_at_most_120_lines():
    sources = [p for p in files("apr_quant_nf4").iterdir() if p.name.endswith(".py")]
    lines = {p.name: p.read_text("utf-8").count("\n") for p in sources}
    assert {"hooks.py", "codec.py"} <= lines.keys()
    assert sum(lines.values()) <= 120, lines
    assert max(len(line) for p in sources for line in p.read_text("utf-8").splitlines()) <= 100


def test_the_error_is_well_below_that_of_largest_magnitudes(bell):
    decoded = NF4().decode(NF4().encode(bell), bell.shape[1])
    assert relative_rmse(plain(bell), bell) == pytest.approx(0.0919, abs=5e-4)
    assert relative_rmse(decoded, bell) < 0.084


def test_groups_are_turned_over_where_that_is_better():
    x = np.tile(np.array(LEVELS, np.float32), 16)[None]  # levels themselves: no error either way
    for values in (x, -x):
        assert relative_rmse(NF4().decode(NF4().encode(values), x.shape[1]), values) < 0.005


def test_codes_are_those_nearest_to_what_was_given(bell):
    """Moving any code up or down by one never helps."""
    raw, rows = NF4().encode(bell), np.arange(bell.shape[0])
    best = np.abs(NF4().decode(raw, bell.shape[1]) - bell)
    blocks = raw.reshape(len(rows), -1, 134)
    for step in (1, -1):
        low, high = blocks[:, :, LAYOUT.codes :] & 15, blocks[:, :, LAYOUT.codes :] >> 4
        moved = blocks.copy()
        moved[:, :, LAYOUT.codes :] = sum(
            np.clip(part.astype(int) + step, 0, 15).astype(np.uint8) << shift
            for part, shift in ((low, 0), (high, 4))
        )
        worse = np.abs(NF4().decode(moved.reshape(raw.shape), bell.shape[1]) - bell)
        assert (worse >= best - 1e-6).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2e38])
def test_values_that_no_scale_holds_are_refused(bad):
    x = np.ones((2, 300), np.float32)
    x[1, 299] = bad
    with pytest.raises(QuantizationError, match="finite values below 1e\\+38"):
        NF4().encode(x)


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """The demo model in nf4."""
    from apr_core.cli.import_ import run_import
    from apr_core.errors import PluginNotFound

    target = tmp_path_factory.mktemp("nf4") / "sums.apr"
    try:
        run_import("demo://sums", target, "nf4")
    except PluginNotFound as error:
        pytest.skip(f"{error.message}: {error.hint}")
    return target


def greedy(model, prompts, steps=12):
    slots = [model.new_slot() for _ in prompts]
    rows = [model.forward([(s, p)])[0] for s, p in zip(slots, prompts, strict=True)]
    trace = [rows]
    for _ in range(steps):
        chosen = [int(row.argmax()) for row in trace[-1]]
        trace.append(list(model.forward([(s, [t]) for s, t in zip(slots, chosen, strict=True)])))
    for slot in slots:
        model.free_slot(slot)
    return np.array(trace)  # [steps + 1, prompts, vocab]


def test_a_model_gives_the_same_bits_alone_and_in_any_batch(sums):
    rng = np.random.default_rng(11)
    prompts = [rng.integers(0, 500, n).tolist() for n in (1, 37, 64, 130, 7, 9, 20)]
    with load(sums) as model:
        together = greedy(model, prompts)
        for i, prompt in enumerate(prompts):
            np.testing.assert_array_equal(greedy(model, [prompt])[:, 0], together[:, i])


def test_a_model_runs_on_the_packed_blocks(sums):
    with load(sums) as model:
        assert not [line for line in model.report.fallbacks if "nf4" in line]
        if model.report.device.startswith("cpu"):
            assert model.report.as_dict()["linear[nf4]"] == "apr_backend_cpu.ops.linear:linear"
        asked = model.chat_ids([{"role": "user", "content": "12+34="}])
        assert model.generate(asked, params=SamplingParams(), max_tokens=8).text.strip() == "46"
