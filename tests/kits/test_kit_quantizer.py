"""The quantizer kit: a plain codec passes, and each check catches the codec made to fail it."""

from __future__ import annotations

import numpy as np
import pytest

from apr_core.declarations import Layout, Numbers
from apr_core.registry import Registry
from apr_devkit.kits import QuantizerConformance, run_checks
from apr_devkit.kits.checks import run_check
from apr_devkit.kits.measures import default_bounds, plain_codec
from apr_devkit.kits.quantizer import golden_digest
from tests.kits.broken import quantizers as broken
from tests.kits.broken.quantizers import BLOCK, LAYOUT, declare
from tests.kits.caught import own_checks

OWN = own_checks(QuantizerConformance)


def kit(codec, declared=None, golden="", **stated):
    """A kit of one codec, in a registry that holds nothing else. `stated` are its promises."""
    broken.Stated = codec = (
        type("Stated", (codec,), {"__module__": broken.__name__} | stated) if stated else codec
    )
    results = Registry.from_declarations({"toys": [declare(codec, **(declared or {}))]})
    attributes = {"quantizer": "toy", "registry": results, "golden": golden}
    return type("Toy", (QuantizerConformance,), attributes)


def failure(check, codec, declared=None, **attributes):
    """The reason why a check fails."""
    result = run_check(kit(codec, declared, **attributes), check)
    assert result.outcome == "failed", result
    return result.reason


def test_a_plain_codec_passes_everything():
    golden = golden_digest(broken.Plain(), BLOCK)
    results = list(run_checks(kit(broken.Honest, golden=golden), OWN))
    assert {r.outcome for r in results} == {"passed"}, [r for r in results if r.reason]
    assert len(results) >= 10 and all(r.subject == "quantizer toy" for r in results)


def test_what_nobody_recorded_is_skipped_with_a_reason():
    results = {r.check: r for r in run_checks(kit(broken.Plain, {"layout": None}), OWN)}
    skipped = {name for name, r in results.items() if r.outcome == "skipped"}
    assert skipped == {"test_golden_bytes", "test_layout_means_what_decode_does"}
    assert not [r for r in results.values() if r.outcome == "failed"]


def test_a_codec_that_loses_nothing_may_say_so():
    facts = {"bytes_per_block": 4 * BLOCK, "layout": None}
    results = list(run_checks(kit(broken.Lossless, facts), OWN))
    assert not [r for r in results if r.outcome == "failed"]
    skipped = {r.check for r in results if r.outcome == "skipped"}
    assert skipped == {"test_golden_bytes", "test_layout_means_what_decode_does"}
    assert "allowed is 0" in failure(
        "test_error_is_within_its_bound", broken.Plain, max_error={"gaussian": 0.0}
    )


def test_a_small_gain_passes_every_check_but_the_one_about_gains():
    results = run_checks(kit(broken.ShrinksALittle, {"layout": None}), OWN)
    wrong = [r.check for r in results if r.outcome == "failed"]
    assert wrong == ["test_values_are_neither_shrunk_nor_stretched"]


def test_a_gain_that_is_meant_is_allowed_by_the_codec():
    check = "test_values_are_neither_shrunk_nor_stretched"
    assert run_check(kit(broken.ShrinksALittle, gain_tolerance=0.03), check).outcome == "passed"
    result = run_check(kit(broken.ShrinksALittle, gain_tolerance=None), check)
    assert result.outcome == "skipped" and "gain_tolerance is None" in result.reason


CAUGHT = [
    ("error_is_within_its_bound", broken.LongRows, "18 bytes for 32 values"),
    ("error_is_within_its_bound", broken.SignedBytes, "'array of int8', expected"),
    ("error_is_within_its_bound", broken.DoubleValues, "'array of float64', expected"),
    ("error_is_within_its_bound", broken.UnevenRows, "[1, 33], is [1, 18], expected [1, 36]"),
    ("error_is_within_its_bound", broken.Truncates, "relative RMSE"),
    ("error_is_within_its_bound", broken.SwapsNibbles, "relative RMSE"),
    ("error_is_within_its_bound", broken.TooProud, "gaussian: relative RMSE 0.0"),
    ("values_are_neither_shrunk_nor_stretched", broken.ShrinksALittle, "values are 0.9811 times"),
    ("error_is_within_its_bound", broken.NoBound, "max_error of gaussian is 10"),
    ("error_is_within_its_bound", broken.SmallestStep, "values around 0.001"),
    ("error_is_within_its_bound", broken.PadsWithOnes, "rows of 1 values"),
    ("extremes_are_kept_or_refused", broken.ZerosBecomeDust, "zeros decode to up to 1e-06"),
    ("error_is_within_its_bound", broken.LosesConstants, "rows that hold 1: relative RMSE 1"),
    ("extremes_are_kept_or_refused", broken.OverflowsToInfinity, "NaN or infinite"),
    ("extremes_are_kept_or_refused", broken.RefusesWithValueError, "raises ValueError: too"),
    ("extremes_are_kept_or_refused", broken.RaisesTheScale, "values around 1e-08"),
    ("extremes_are_kept_or_refused", broken.AcceptsNaN, "nan at row 0, column 0: encode accepts"),
    ("extremes_are_kept_or_refused", broken.AssertsFiniteness, "not QuantizationError"),
    ("the_same_bytes_every_time", broken.Dithers, "encoding twice changes"),
    ("the_same_bytes_every_time", broken.DithersEachObject, "by a second object changes"),
    ("the_same_bytes_every_time", broken.MainThreadOnly, "on another thread changes"),
    ("the_same_bytes_every_time", broken.HashesStrings, "what another process encodes to is"),
    ("rows_are_independent", broken.OneScaleForAllRows, "rows 0 to 1 alone changes"),
    ("input_may_be_any_view_and_is_left_alone", broken.WritesToItsInput, "changed its input"),
    ("input_may_be_any_view_and_is_left_alone", broken.InMemoryOrder, "columns first in memory"),
    ("input_may_be_any_view_and_is_left_alone", broken.NeedsToWrite, "read-only"),
    ("rows_are_independent", broken.EncodesIntoOneBuffer, "encoding rows 0 to 1 alone, looked"),
    ("rows_are_independent", broken.DecodesIntoItsBuffer, "decoding rows 0 to 1 alone, looked"),
    ("values_are_neither_shrunk_nor_stretched", broken.Shrinks, "values are 0.94"),
    ("input_may_be_any_view_and_is_left_alone", broken.DecodesInPlace, "read-only"),
    ("bytes_of_another_length_are_refused", broken.DecodesAnything, "accepts rows with a byte"),
]


@pytest.mark.parametrize(
    ("check", "codec", "reason"), CAUGHT, ids=[codec.__name__ for _, codec, _ in CAUGHT]
)
def test_a_wrong_codec_is_caught(check, codec, reason):
    assert reason in failure(f"test_{check}", codec)


def test_every_check_has_somebody_it_catches():
    caught = {f"test_{check}" for check, _, _ in CAUGHT}
    elsewhere = {"test_format_id_is_free", "test_layout_means_what_decode_does"}
    assert caught | elsewhere | {"test_golden_bytes"} == set(OWN)


@pytest.mark.parametrize(("number", "reason"), [
    (200, "belong to files"), (-1, "belong to files"), (12, "contradicts APR v2"),
    (128, "reserved"),
])  # fmt: skip
def test_an_id_that_is_not_its_own_is_caught(number, reason):
    assert reason in failure("test_format_id_is_free", broken.Plain, {"dtype_id": number})


@pytest.mark.parametrize(("layout", "reason"), [
    (Layout(group=32, codes=2, bits=4, zero=7, scale=LAYOUT.scale), "differ from decode's"),
    (Layout(group=32, codes=2, bits=4, zero=8, scale=LAYOUT.scale, order="halves"), "differ"),
    (Layout(group=16, codes=2, bits=4, zero=8, scale=LAYOUT.scale), "group 16 must be"),
    (Layout(group=32, codes=2, bits=4, zero=8, scale=(Numbers(17, "f16"),)), "exceeds the block"),
])  # fmt: skip
def test_a_layout_that_means_something_else_is_caught(layout, reason):
    results = failure("test_layout_means_what_decode_does", broken.Plain, {"layout": layout})
    assert reason in results


def test_golden_bytes_are_compared():
    recorded = golden_digest(broken.Plain(), BLOCK)
    assert run_check(kit(broken.Plain, golden=recorded), "test_golden_bytes").outcome == "passed"
    assert recorded in failure("test_golden_bytes", broken.Plain, golden="?")


def test_a_kind_without_a_stated_bound_has_that_of_its_bytes():
    toy_kit = kit(broken.Plain, max_error={"gaussian": 0.15})
    assert toy_kit().bounds()["gaussian"] == 0.15
    assert toy_kit().bounds()["laplace"] == default_bounds(BLOCK, 18)["laplace"]


def test_a_codec_derives_from_the_base_class():
    reason = failure("test_rows_are_independent", broken.OfNoKind)
    assert "OfNoKind must derive from apr_core.plugin.QuantizerPlugin" in reason


def test_a_bound_for_something_unknown_is_said():
    results = failure("test_error_is_within_its_bound", broken.Plain, max_error={"gausian": 1.0})
    assert "gausian" in results


@pytest.mark.parametrize(("bits", "block", "expected"), [
    (4.5, 32, (4, 32)), (8.5, 32, (8, 32)), (4.125, 128, (4, 128)), (5.0, 32, (4, 16)),
    (6.5625, 256, (6, 28)), (8.0625, 64, (8, 64)), (1.6875, 256, (2, 256)),
])  # fmt: skip
def test_the_plain_codec_of_as_many_bytes(bits, block, expected):
    assert plain_codec(bits, block) == expected


def test_fewer_bytes_may_be_more_wrong():
    bounds = [default_bounds(32, nbytes)["gaussian"] for nbytes in (34, 26, 22, 18, 14, 10)]
    assert bounds == sorted(bounds) and bounds[0] < 0.01 and bounds[3] < 0.15
    assert np.all(np.array(list(default_bounds(256, 66).values())) <= 1)
