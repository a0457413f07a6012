"""Calibrations: sums of inputs are those of the formula, files come back, encoders get them."""

from __future__ import annotations

import numpy as np
import pytest

from apr_core.cli import run
from apr_core.format import AprFile
from apr_core.importing.importer import plan_import, write_import
from apr_core.importing.source import find_source
from apr_core.registry import get_registry
from apr_devkit.tiny import tiny_apr, tiny_checkpoint
from apr_eval.calibrate import run_calibrate
from apr_eval.calibration import DAMPING, Calibration, Sums, feedback_of
from apr_eval.layerwise import open_layerwise

pytestmark = pytest.mark.needs_plugins

TEXT = "In the beginning there was a word, and the word was counted twice. " * 12
FAMILIES = ("llama", "qwen3_5", "qwen3_5_moe")


@pytest.fixture(scope="module", params=FAMILIES)
def calibrated(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    path = tiny_apr(request.param, folder, "f32", registry=get_registry())
    rows, matrices = run_calibrate(str(path), [TEXT], folder / "cal", tokens=300, context=128)
    return path, Calibration.read(folder / "cal"), rows, matrices


def given(path, pieces):
    """What each matrix is multiplied with: {name: [(what its op is given, ...)]}."""
    seen = {}

    def watch(weight, arguments):
        copies = tuple(np.array(a) for a in arguments if isinstance(a, np.ndarray))
        seen.setdefault(weight.name, []).append(copies)

    with open_layerwise(str(path), watch=watch) as model:
        model.hidden(pieces)
    return seen


def test_sums_are_those_of_the_formula(calibrated):
    path, found, rows, matrices = calibrated
    with open_layerwise(str(path)) as model:
        from apr_core.text.tokenizer import Tokenizer

        ids = Tokenizer.from_metadata(model.file.metadata).encode(TEXT)[:300]
        names = set(model.file.tensors)
    assert rows == len(ids) and matrices == len(found.inputs) and set(found.inputs) <= names
    seen = given(path, [ids[i : i + 128] for i in range(0, len(ids), 128)])
    checked = 0
    for name, calls in seen.items():
        if len(calls[0]) > 1:  # experts: [T, in] or [T, k, in], and ids
            check_experts(found, name, calls)
        elif calls[0][0].dtype == np.float32:
            x = np.concatenate([call[0] for call in calls]).astype(np.float64)
            inputs = found.inputs_of(name)
            np.testing.assert_allclose(inputs.mean_square, (x * x).mean(0), rtol=1e-5)
            gram = found.sums[found.inputs[name]].gram
            part = x[:, :128].T @ x[:, :128]
            np.testing.assert_allclose(
                gram[0, : len(part), : len(part)], part, rtol=1e-3, atol=1e-3
            )
            checked += 1
    assert checked > 8


def check_experts(found, name, calls):
    for expert in range(found.sums[found.inputs[name]].rows.size):
        rows = [
            np.broadcast_to(x[:, None] if x.ndim == 2 else x, (*ids.shape, x.shape[-1]))[
                ids == expert
            ]
            for x, ids in calls
        ]
        x, inputs = np.concatenate(rows).astype(np.float64), found.inputs_of(name, expert)
        if len(x):
            np.testing.assert_allclose(inputs.mean_square, (x * x).mean(0), rtol=1e-5)
            assert inputs.feedback is None
        else:
            assert inputs is None


def test_matrices_with_the_same_inputs_share_them(calibrated):
    _, found, _, _ = calibrated
    pair = [n for n in found.inputs if ".layers.0." in n and n.endswith(("up_proj.weight",))]
    for name in pair:
        gate = name.replace("up_proj", "gate_proj")
        assert found.inputs[name] == found.inputs[gate]
    assert len(found.sums) < len(found.inputs)


@pytest.mark.parametrize("cols", [128, 300])
def test_feedback_makes_the_error_of_later_columns_best(cols):
    """The least squares change of the later columns of a run, given one column's error."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((900, cols)) @ rng.standard_normal((cols, cols))).astype(np.float32)
    sums = Sums(np.zeros(1), np.zeros(cols), np.zeros((-(-cols // 128), 128, 128), np.float32))
    sums.add(x[:500])
    sums.add(x[500:])
    feedback = feedback_of(sums.gram)
    assert not np.tril(feedback).any()
    for number, changes in enumerate(feedback):
        part = x[:, 128 * number : 128 * number + 128].astype(np.float64)
        size, h = part.shape[1], part.T @ part
        h += DAMPING * np.trace(h) / size * np.eye(size)
        for j in (0, size // 2, size - 2):
            best = np.linalg.solve(h[j + 1 :, j + 1 :], h[j + 1 :, j])  # of w_j less its value
            np.testing.assert_allclose(changes[j, j + 1 : size], best, rtol=2e-2, atol=2e-3)
        assert not changes[:, size:].any()


def test_columns_that_are_always_zero_take_and_give_nothing():
    x = np.random.default_rng(1).standard_normal((300, 128)).astype(np.float32)
    x[:, 40:60] = 0
    gram = (x.T @ x)[None]
    feedback = feedback_of(gram)[0]
    assert (
        np.isfinite(feedback).all() and not feedback[40:60].any() and not feedback[:, 40:60].any()
    )
    assert not feedback_of(np.zeros((1, 128, 128), np.float32)).any()


def test_an_import_tells_its_encoders(tmp_path, monkeypatch):
    checkpoint = tiny_checkpoint("qwen3_5_moe", tmp_path / "c")
    registry, told = get_registry(), {}
    codec = type(registry.make("quantizer", "q8_0"))

    def encode_for(self, rows, inputs):
        told.setdefault(id(inputs), (rows.shape, inputs))
        return self.encode(rows)

    monkeypatch.setattr(codec, "encode_for", encode_for)
    asked = []

    class Given:
        def __init__(self, name, matrix):
            asked.append((name, matrix))

    kept = []

    def inputs_of(name, matrix):
        kept.append(Given(name, matrix))
        return kept[-1]

    plan = plan_import(
        find_source(str(checkpoint), registry), recipe="q8_0", arch=None, registry=registry
    )
    write_import(plan, tmp_path / "told.apr", inputs_of=inputs_of)
    write_import(plan, tmp_path / "plain.apr")
    with AprFile.open(tmp_path / "told.apr") as a, AprFile.open(tmp_path / "plain.apr") as b:
        for name in a.tensors:
            np.testing.assert_array_equal(a.raw(name), b.raw(name))
        stack = next(n for n in a.tensors if n.endswith("experts.down_proj"))
        experts, out, cols = a.tensors[stack].shape
    assert [m for n, m in asked if n == stack] == list(range(experts))
    assert (out, cols) in {shape for shape, _ in told.values()}


def test_a_file_that_is_no_calibration_is_named(tmp_path):
    from apr_core.errors import FormatError

    checkpoint = tiny_checkpoint("llama", tmp_path / "c")
    with pytest.raises(FormatError, match="is no calibration"):
        Calibration.read(checkpoint / "model.safetensors")
    (tmp_path / "x").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        Calibration.read(tmp_path / "x")


def test_the_command_says_what_it_wrote(capsys, tmp_path):
    path = tiny_apr("llama", tmp_path, "f32", registry=get_registry())
    (tmp_path / "text").write_text(TEXT)
    out = tmp_path / "made" / "cal.safetensors"
    assert run(["calibrate", str(path), "--text", str(tmp_path / "text"), "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert str(out) in printed and "tokens, " in printed
    assert Calibration.read(out).about["model"] == str(path)
    (tmp_path / "text").write_text("")
    again = ["calibrate", str(path), "--text", str(tmp_path / "text"), "-o", str(tmp_path / "x")]
    assert run(again) == 2 and "the texts are empty" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
