"""The kit of feed-forward variants: some are wrong in one way each, and a check says so."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from apr_core.plugin import FeedForward, MixerExample, Mlp, op
from apr_core.registry import Registry
from apr_devkit.kits import MlpConformance
from apr_devkit.kits.checks import PluginConformance, checks_of, run_check

HIDDEN, INNER = 32, 48


@op
def bend(xp, x):
    """max(x, 0) times x."""
    return xp.maximum(x, 0.0) * x


class Good(FeedForward):
    matrices = ("up_proj", "down_proj")
    activation = "relu"
    gated = False

    @staticmethod
    def example():
        shapes = {"up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER), "other": (HIDDEN,)}
        return MixerExample({}, HIDDEN, shapes)

    def __call__(self, o, w, x):
        return o.linear(o.bend(o.linear(x, w.up_proj)), w.down_proj)


def kit_of(mlp):
    """The kit for one feed-forward of this module, with nothing else installed."""
    setattr(sys.modules[__name__], mlp.__name__, mlp)
    brings = (("bend", f"{__name__}:bend"),)
    declared = Mlp("mine", f"{__name__}:{mlp.__name__}", brings=brings, cases=f"{__name__}:cases")
    registry = Registry.from_declarations({"apr-mine": [declared]})
    return type("Mine", (MlpConformance,), {"mlp": "mine", "registry": registry})


def cases():
    from apr_devkit.kits import OpCase
    from apr_devkit.kits.cases import normal

    return [OpCase("bend", "5 rows", lambda rng: [(normal(rng, 5, INNER),)])]


def own_checks():
    return [c for c in checks_of(MlpConformance) if not hasattr(PluginConformance, c)]


def doing(change, **members):
    """A feed-forward whose output is changed by `change(y)`."""

    class Doing(Good):
        def __call__(self, o, w, x):
            return change(super().__call__(o, w, x))

    return type("Doing", (Doing,), members)


def test_a_right_one_passes():
    results = [run_check(kit_of(Good), check) for check in own_checks()]
    assert {r.check: r.reason for r in results if r.outcome != "passed"} == {}


def test_the_own_checks_are_shown_to_catch_something():
    shown = Path(__file__).read_text("utf-8")
    beside = Path(__file__).with_name("test_kit_attention.py").read_text("utf-8")
    assert [c for c in own_checks() if c.removeprefix("test_") not in shown + beside] == []


CAUGHT = [
    ("test_it_says_what_it_is", {"activation": "swish"}, "activation is 'swish'"),
    ("test_it_says_what_it_is", {"gated": None}, "gated is None"),
    ("test_roles_are_named", {"vectors": ("input_norm",)}, "'input_norm'"),
]


@pytest.mark.parametrize(("check", "members", "said"), CAUGHT)
def test_what_it_says_wrongly_is_named(check, members, said):
    result = run_check(kit_of(doing(lambda y: y, **members)), check)
    assert result.outcome == "failed" and said in result.reason


@pytest.mark.parametrize(
    ("check", "change", "said"),
    [
        ("test_rows_do_not_depend_on_each_other", lambda y: y - y.mean(axis=0), "differ by"),
        ("test_steps_can_be_recorded", lambda y: y * 2, "arithmetic outside ops"),
        ("test_output_has_the_shape_of_the_input", lambda y: y[:, 1:], "expected (1, 32)"),
        ("test_output_has_the_shape_of_the_input", np.float64, "expected float32"),
    ],
)
def test_what_it_does_wrongly_is_named(check, change, said):
    result = run_check(kit_of(doing(change)), check)
    assert result.outcome == "failed" and said in result.reason, result.reason
