"""Kits of a family and its mixer, alone in a registry, for families that are wrong in one way."""

from __future__ import annotations

import copy
import sys

import numpy as np

from apr_core.plugin import Attention, Contract, Family
from apr_core.registry import Registry
from apr_devkit.kits import FamilyConformance
from apr_devkit.kits.checks import PluginConformance, checks_of, run_check
from apr_qwen2.family import Qwen2
from apr_qwen2.mixers import FullAttention


def kit_of(family=Qwen2, mixer=FullAttention, others=(), **declared):
    """The kit for a family and its mixer, beside `others`. Without a backend among them it runs on
    references.
    """
    here = sys.modules[__name__]
    for made in (family, mixer):
        setattr(here, made.__name__, made)
    facts = {
        "architectures": ("Qwen2ForCausalLM",), "model_types": ("qwen2",),
    } | declared  # fmt: skip
    declarations = [
        Family("qwen2", f"{__name__}:{family.__name__}", **facts),
        Attention("full_attention", f"{__name__}:{mixer.__name__}"),
    ]
    registry = Registry.from_declarations({"apr-mine": declarations, "others": list(others)})
    return type("Mine", (FamilyConformance,), {"family": "qwen2", "registry": registry})


def changed_contract(change):
    """A family whose contract was changed in place by `change(content)`."""
    content = copy.deepcopy(dict(Qwen2().contract().content))
    change(content)

    class Changed(Qwen2):
        def contract(self):
            return Contract(content, "changed")

    return Changed


def own_checks():
    return [c for c in checks_of(FamilyConformance) if not hasattr(PluginConformance, c)]


def assert_caught(kit, check, said):
    result = run_check(kit, check)
    assert result.outcome == "failed", f"{check} {result.outcome} {result.reason}"
    assert said in result.reason, result.reason


def mixer(change):
    """Full attention whose input is changed first, by `change(x, step)`."""

    class Other(FullAttention):
        def __call__(self, o, w, x, step, state):
            return super().__call__(o, w, change(x, step).astype(np.float32), step, state)

    return Other


def with_state(change):
    """Full attention whose state's class is `change(class of the real one)`."""

    class Other(FullAttention):
        def new_state(self, states):
            made = super().new_state(states)
            made.__class__ = change(type(made))
            return made

    return Other
