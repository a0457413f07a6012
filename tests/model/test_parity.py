"""Our logits against transformers in float32, on random checkpoints of the families.

transformers sees each sequence at once; we see it in one pass, in chunks, token by token and in a
mixed batch. Differences are relative to the logits' standard deviation: "at logit scale 1".
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle of these tests")
transformers = pytest.importorskip("transformers", reason="the oracle of these tests")

from apr_core import load
from tests import hf_models

pytestmark = pytest.mark.needs_plugins

CASES = [
    *(hf_models.Case("qwen3_5", "published", ratio, tied)
      for ratio in (1, 2, 3) for tied in (True, False)),
    hf_models.Case("qwen3_5", "flat", 1, True),
    hf_models.Case("qwen3_5", "flat", 2, False),
    hf_models.Case("qwen3_5", "flat", 3, True),
    hf_models.Case("qwen3_5", "published", 2, rope="yarn"),
    hf_models.Case("qwen3_5_moe", "published", tied=False),
    hf_models.Case("qwen3_5_moe", "flat", rope="yarn"),
    hf_models.Case("qwen2", rope="yarn"),
    hf_models.Case("qwen2", tied=False),
    hf_models.Case("qwen3", rope="linear"),
    hf_models.Case("qwen3", tied=False),
    hf_models.Case("llama", tied=False),
    *(hf_models.Case("llama", rope=rope) for rope in ("linear", "llama3", "yarn")),
    hf_models.Case("mistral", tied=False),
    *(hf_models.Case("gemma3", rope=rope) for rope in ("linear", "yarn")),
    hf_models.Case("gemma3", tied=False, rope="llama3"),
]  # fmt: skip
LENGTHS = (1, 2, 3, 63, 64, 65, 200)
DECODE = 50
TOLERANCE = 2e-4


class Pair:
    """A loaded .apr, and the oracle's logits of any sequence."""

    def __init__(self, case, directory):
        hf = hf_models.build(case)
        hf_models.save(hf, case, directory / "checkpoint")
        target = directory / "model.apr"
        subprocess.run(
            [sys.executable, "-m", "apr_core.cli", "import", directory / "checkpoint",
             "--quantize", "f32", "-o", target],
            check=True, capture_output=True,
        )  # fmt: skip
        self.hf, self.model = hf.float(), load(target, threads=1)
        rng = np.random.default_rng(3)
        self.sequences = [rng.integers(0, hf_models.VOCAB, n + DECODE).tolist() for n in LENGTHS]
        self.expected = [self.oracle(ids) for ids in self.sequences]

    def oracle(self, ids):
        with torch.inference_mode():
            return self.hf(torch.tensor([ids])).logits[0].float().numpy()


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(request, tmp_path_factory):
    pair_ = Pair(request.param, tmp_path_factory.mktemp("parity"))
    yield pair_
    pair_.model.close()


def assert_parity(actual, expected):
    difference = np.abs(actual - expected).max() / expected.std()
    assert difference < TOLERANCE, f"max difference {difference:.2e} at logit scale 1"


def test_one_pass(pair):
    for ids, expected in zip(pair.sequences, pair.expected, strict=True):
        assert_parity(pair.model.logits(ids), expected)


def test_prompt_then_50_decode_steps(pair):
    for ids, expected in zip(pair.sequences, pair.expected, strict=True):
        model, prompt = pair.model, len(ids) - DECODE
        slot = model.new_slot()
        rows = [model.forward([(slot, ids[:prompt])], all_rows=True)]
        rows += [model.forward([(slot, [token])]) for token in ids[prompt:]]
        model.free_slot(slot)
        assert_parity(np.concatenate(rows), expected)


@pytest.mark.parametrize(("chunk", "length"), [(1, 80), (3, 80), (64, 250), (100, 250), (128, 250)])
def test_in_chunks(pair, chunk, length):
    ids, expected = pair.sequences[-1][:length], pair.expected[-1][:length]
    assert_parity(pair.model.logits(ids, chunk=chunk), expected)


def test_mixed_batch_of_five(pair):
    """Five sequences of different lengths, some in prefill while others decode."""
    model, chosen = pair.model, [0, 2, 3, 5, 6]
    slots = {i: model.new_slot() for i in chosen}
    rows = {i: [] for i in chosen}
    sizes = {0: 1, 2: 2, 3: 70, 5: 64, 6: 30}
    while any(model.length(slots[i]) < len(pair.sequences[i]) for i in chosen):
        active = [i for i in chosen if model.length(slots[i]) < len(pair.sequences[i])]
        parts = []
        for i in active:
            at = model.length(slots[i])
            parts.append((slots[i], pair.sequences[i][at : at + sizes[i]]))
        logits = model.forward(parts, all_rows=True)
        at = 0
        for i, (_, ids) in zip(active, parts, strict=True):
            rows[i].append(logits[at : at + len(ids)])
            at += len(ids)
    for i in chosen:
        model.free_slot(slots[i])
        assert_parity(np.concatenate(rows[i]), pair.expected[i])


def test_snapshot_resumes_exactly(pair):
    model, ids = pair.model, pair.sequences[-1]
    first, second = model.new_slot(), model.new_slot()
    model.forward([(first, ids[:77])])
    snapshot = model.snapshot(first)
    expected = model.forward([(first, ids[77:])], all_rows=True)
    model.forward([(second, ids[100:140])])  # the slot has held something else before
    model.restore(second, snapshot)
    np.testing.assert_array_equal(model.forward([(second, ids[77:])], all_rows=True), expected)
    model.free_slot(first)
    model.free_slot(second)
