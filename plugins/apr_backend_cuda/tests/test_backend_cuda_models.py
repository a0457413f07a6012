"""Whole models on the CUDA backend: what every backend passes, and how near to float32 they are."""

from __future__ import annotations

import numpy as np
import pytest

from apr_core import load
from apr_core.registry import get_registry
from apr_devkit.kits.backend import ModelChecks
from apr_devkit.kits.rig import NAME, with_reference
from apr_devkit.tiny import tiny_apr

pytestmark = pytest.mark.takes_minutes
NEAR = {"f32": 2e-4, "bf16": 2e-2, "q4_k_m": 2e-2, "q8_0": 2e-2}  # of the largest logit


class TestCudaModels(ModelChecks):
    backend = "cuda"


@pytest.mark.parametrize("recipe", NEAR)
@pytest.mark.parametrize("family", ["qwen2", "qwen3_5"])
def test_logits_are_near_those_of_float32(tmp_path, family, recipe):
    registry = get_registry()
    path = tiny_apr(family, tmp_path, recipe, registry=registry)
    with load(path, NAME, registry=with_reference(registry)) as model:
        ids = [int(i) for i in np.random.default_rng(3).integers(0, model.config.vocab_size, 70)]
        expected = model.logits(ids)
    with load(path, "cuda", strict=True) as model:
        slot = model.new_slot()
        read = [model.forward([(slot, ids[:67])], all_rows=True)]  # in chunks of the delta rule
        read += [model.forward([(slot, [i])]) for i in ids[67:]]  # recorded steps
        logits = np.concatenate(read)
    assert np.abs(logits - expected).max() <= NEAR[recipe] * np.abs(expected).max()
