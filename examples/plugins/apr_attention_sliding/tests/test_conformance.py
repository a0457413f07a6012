"""The kits of apr_devkit.kits. Qwen2 with `use_sliding_window` is the family's oracle."""

from __future__ import annotations

import numpy as np

from apr_attention_sliding.family import SlidingDemo
from apr_core import load
from apr_core.registry import get_registry
from apr_devkit.kits import AttentionConformance, FamilyConformance
from apr_devkit.kits.rig import NAME, with_reference
from apr_devkit.tiny import tiny_apr


class TestSlidingDemo(FamilyConformance):
    family = "sliding_demo"
    transformers = "Qwen2ForCausalLM"


class TestSlidingAttention(AttentionConformance):
    attention = "sliding_attention"


def test_memory_stops_growing_at_the_window(tmp_path):
    registry = with_reference(get_registry())
    with load(tiny_apr("sliding_demo", tmp_path), NAME, registry=registry) as model:
        slot = model.new_slot()
        held = []
        for _ in range(7):
            model.forward([(slot, list(range(80)))])
            sliding, full = model._states[0], model._states[3]
            held.append((sliding.nbytes(), full.nbytes()))
    assert max(sliding for sliding, _ in held) == 512 * 2 * 2 * 16 * 4  # rows of keys and values
    assert held[-1][1] > 512 * 2 * 2 * 16 * 4, "full attention grows"


def test_what_left_the_window_of_every_layer_is_forgotten(tmp_path):
    config = SlidingDemo().tiny_config() | {"layer_types": ["sliding_attention"] * 4}
    registry = with_reference(get_registry())
    path = tiny_apr("sliding_demo", tmp_path, config=config)
    with load(path, NAME, registry=registry) as model:
        ids = np.random.default_rng(0).integers(0, 320, 120).tolist()
        changed = [(ids[0] + 1) % 320, *ids[1:]]
        ours, other = model.logits(ids), model.logits(changed)
    reach = 4 * (24 - 1)  # four layers, each looks 23 positions back
    assert np.array_equal(ours[reach + 1 :], other[reach + 1 :])
    assert not np.array_equal(ours[reach - 40 : reach + 1], other[reach - 40 : reach + 1])
