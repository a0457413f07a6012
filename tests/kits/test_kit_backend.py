"""The backend kit: a sound backend passes, and each check catches the backend made to fail it."""

from __future__ import annotations

import pytest

from apr_core.declarations import Attention, Backend, Mlp, Quantizer
from apr_core.registry import Registry, get_registry
from apr_devkit.kits import BackendConformance, checks
from apr_devkit.kits.backend import ChoiceChecks
from apr_devkit.kits.checks import run_check
from tests.kits.broken import backends as broken
from tests.kits.caught import own_checks

OWN = own_checks(BackendConformance)
MODELS = [name for name in OWN if "family" in name or "models" in name or "captured" in name]
CHOICES = own_checks(ChoiceChecks)
needs_families = pytest.mark.skipif(
    not get_registry().declarations("family"), reason="no family is installed"
)


def declared(**facts):
    return Backend("toy", broken.target("Toy"), summary="a toy", **facts)


def kit(backend, *more, everything=False, **facts):
    """A kit of one backend, beside nothing else or everything that is installed."""
    results = Registry.from_declarations({"toys": [declared(**facts), *more]})
    if everything:
        results = Registry([*get_registry().plugins, *results.plugins])
    setattr(broken, "Toy", backend)  # noqa: B010 - the target of the declaration
    return type("Toy", (BackendConformance,), {"backend": "toy", "registry": results})


def failure(check, backend, **options):
    """The reason why a check fails."""
    result = run_check(kit(backend, **options), f"test_{check}")
    assert result.outcome == "failed", result
    return result.reason


def outcomes(backend, checks, **options):
    of = kit(backend, **options)
    return {name: run_check(of, name) for name in checks}


def test_a_sound_backend_passes_everything():
    results = outcomes(broken.Sound, [name for name in OWN if name not in MODELS])
    assert not [r for r in results.values() if r.outcome == "failed"]
    assert {n for n, r in results.items() if r.outcome == "skipped"} == {
        "test_packed_weights_are_read_as_decoded",
        *CHOICES,
    }
    assert len(results) >= 15


@needs_families
def test_a_sound_backend_runs_every_family():
    results = outcomes(broken.Sound, MODELS, everything=True)
    reasons = {r.reason for r in results.values() if r.outcome == "skipped"}
    assert reasons == {"it has no capture()", "its kernel table reads no format of any recipe"}
    assert not [r for r in results.values() if r.outcome == "failed"]


@pytest.mark.parametrize("backend", [broken.READS_FLOATS, broken.READS_LAYOUTS])
def test_sound_kernels_for_packed_weights_pass(backend):
    result = run_check(kit(backend), "test_packed_weights_are_read_as_decoded")
    assert result.outcome == "passed", result


ARRAYS = [
    ("it_is_made_with_any_number_of_threads", broken.Misnamed, "name is 'someone', expected 'toy'"),
    ("it_is_made_with_any_number_of_threads", broken.TakesNoThreads, "unexpected keyword argument"),
    ("it_is_made_with_any_number_of_threads", broken.SaysTooMuch, "expected one line"),
    ("a_device_that_is_not_there_is_refused", broken.TakesAnyDevice, "it was made: reference"),
    ("zeros_are_zeros", broken.ZerosAreEmpty, "zeros((1,), 'f32') is not zero: [nan]"),
    ("zeros_are_zeros", broken.ZerosAreWide, "'f16') is 'float32', expected"),
    ("zeros_are_zeros", broken.ZerosAreShared, "two results of zeros share memory"),
    ("zeros_are_zeros", broken.HidesItsSize, "is 0, expected 4"),
    ("uploads_come_back", broken.UploadsHalf, "float32 [5, 37]: other values came back"),
    ("uploads_come_back", broken.UploadsShortIntegers, "int64: dtype is 'int32', expected 'int64'"),
    ("uploads_come_back", broken.UploadsWithoutStrides, "every second column of float32"),
    ("uploads_come_back", broken.SpoilsMatrices, "an upload changed its argument"),
    ("slices_are_written_in_place", broken.CopiesNothing, "written and copied has changed"),
    ("memory_comes_back", broken.Leaks, "an array is kept"),
    ("memory_comes_back", broken.SaysItLeaks, "bytes more are in use"),
]


@pytest.mark.parametrize(("check", "backend", "words"), ARRAYS)
def test_wrong_arrays_are_caught(check, backend, words):
    try:
        assert words in failure(check, backend)
    finally:
        broken.KEPT.clear()


OPS = [
    ("ops_agree_with_their_references", {"swiglu": "swiglu_of_one_percent_more"},
     "swiglu ((1, 1), values to 8.0): result 1 of call 1 has an NMSE of 1.0e-04"),
    ("ops_agree_with_their_references", {"swiglu": "swiglu_in_double"}, "is float64, expected"),
    ("ops_agree_with_their_references", {"swiglu": "swiglu_that_raises"},
     "raises ZeroDivisionError: no such number"),
    ("ops_agree_with_their_references", {"attention": "attention_that_forgets"},
     "state keys of slot 0 has an NMSE"),
    ("other_memory_neither_changes_nor_shows", {"swiglu": "swiglu_in_place"}, "changes argument 0"),
    ("other_memory_neither_changes_nor_shows", {"attention": "attention_that_writes_everywhere"},
     "changes keys of a slot that was not in the step"),
    ("other_memory_neither_changes_nor_shows", {"swiglu": "swiglu_but_for_the_last"},
     "values NaN or infinite"),
    ("other_memory_neither_changes_nor_shows", {"attention": "attention_over_the_whole_room"},
     "values NaN or infinite"),
    ("views_are_read_where_they_are", {"swiglu": "swiglu_of_whole_rows"}, "NaN or infinite"),
    ("other_memory_neither_changes_nor_shows", {"swiglu": "swiglu_into_one_buffer"},
     "swiglu ((3, 37), values to 8.0): result 1 of call 1 is overwritten by a later call"),
    ("other_memory_neither_changes_nor_shows", {"attention": "attention_into_one_buffer"},
     "result 1 of call 1 is overwritten"),
    ("other_memory_neither_changes_nor_shows", {"linear": "linear_into_the_weights_buffer"},
     "overwritten"),
    ("packed_weights_are_read_as_decoded", {"linear__f16": "linear_of_one_percent_more"},
     "f16): result 1 of call 1 has an NMSE of 1.0e-04, at most 1.0e-05"),
    ("kernel_table_can_be_loaded", {"swiglu": "no_such_kernel"}, "cannot be loaded"),
    ("kernel_table_can_be_loaded", {"swiglu": "NOT_A_FUNCTION"}, "cannot be called"),
    ("kernel_table_can_be_loaded", {"mlp__f16": "linear"}, "('mlp', 'f16') is never looked up"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "kernels", "words"), OPS)
def test_wrong_kernels_are_caught(check, kernels, words):
    assert words in failure(check, broken.with_kernels(**kernels))


@pytest.mark.parametrize(
    ("kernels", "words"),
    [
        ({"linear": "linear_of_8_bits"}, "e-06, at most 1.0e-09 is allowed"),
        ({"linear": "linear_of_11_bits"}, "e-07, at most 1.0e-09 is allowed"),
        ({"silu": "silu_of_11_bits"}, "e-08, at most 1.0e-10 is allowed"),
        ({"rms_norm": "rms_norm_of_its_own_eps"}, "rms_norm ((3, 37), eps 1e-05, values of 0.001)"),
        ({"rms_norm": "rms_norm_without_eps"}, "rms_norm ((3, 37), offset 1.0, values of 0.001)"),
        ({"add_rms_norm": "add_rms_norm_of_its_own_eps"},
         "add_rms_norm ((3, 37), eps 0.001, values of 0.01)"),
    ],
)  # fmt: skip
def test_less_than_float32_and_another_eps_are_caught(monkeypatch, kernels, words):
    monkeypatch.setattr(checks, "SHOWN", 1000)
    assert words in failure("ops_agree_with_their_references", broken.with_kernels(**kernels))


def test_float32_in_another_order_and_with_another_exponential_passes():
    backend = broken.with_kernels(linear="linear_one_by_one", silu="silu_by_powers_of_two")
    result = run_check(kit(backend), "test_ops_agree_with_their_references")
    assert result.outcome == "passed", result


def layout_kernel(name):
    return type("Toy", (broken.Packed,), {"kernels": {("linear", "layout"): broken.target(name)}})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("linear_of_one_percent_more", "is 1.0100 times the expected values, beside rounding"),
        ("linear_of_other_rows", "has an NMSE of"),
    ],
)
def test_wrong_layout_kernels_are_caught_even_within_rounding(name, words):
    assert words in failure("packed_weights_are_read_as_decoded", layout_kernel(name))


def test_a_missing_kernel_module_is_named():
    backend = type("Toy", (broken.Sound,), {"kernels": {("silu", "*"): "no_such_module:silu"}})
    reason = failure("kernel_table_can_be_loaded", backend)
    assert "'no_such_module:silu' cannot be loaded: No module named 'no_such_module'" in reason


def test_bits_that_depend_on_the_batch_are_caught_where_they_are_claimed():
    reason = failure("rows_alone_equal_rows_in_a_batch", broken.BITWISE)
    assert "the middle row alone: result 1 of call 1 differs" in reason
    unclaimed = broken.with_kernels(swiglu="swiglu_by_the_batch")
    result = run_check(kit(unclaimed), "test_rows_alone_equal_rows_in_a_batch")
    assert result.outcome == "passed", result


def test_a_namespace_without_a_function_is_caught():
    assert "softplus ((1, 1), values to 8.0): raises AttributeError: no log1p here" in failure(
        "references_run_on_its_arrays", broken.LacksAFunction
    )


def test_kernels_that_nothing_can_be_compared_with_are_named():
    backend = broken.with_kernels(warp="swiglu", linear__q3="linear", swiglu="swiglu")
    result = run_check(kit(backend), "test_every_kernel_is_compared")
    assert result.outcome == "skipped"
    assert "no plugin is installed that brings the op 'warp'" in result.reason
    assert "no quantizer is installed for linear[q3]" in result.reason


def test_kernels_for_ops_that_a_feed_forward_brings_are_compared():
    here = "tests.kits.test_kit_mlp"
    mlp = Mlp("bent", f"{here}:Good", brings=(("bend", f"{here}:bend"),), cases=f"{here}:cases")
    backend = broken.with_kernels(bend="silu_by_powers_of_two")
    result = run_check(kit(backend, mlp), "test_ops_agree_with_their_references")
    assert result.outcome == "failed" and "bend (5 rows): result 1" in result.reason, result


def test_somebody_elses_broken_plugin_is_named_and_no_failure():
    others = (
        Attention("lost", "no_such_module:Mixer", brings=(("warp", "no_such_module:warp"),)),
        Quantizer("lost", "no_such_module:Codec", block=32, bytes_per_block=18),
    )
    backend = broken.with_kernels(warp="swiglu")
    result = run_check(kit(backend, *others), "test_every_kernel_is_compared")
    assert result.outcome == "skipped" and "toys:lost: no_such_module:warp" in result.reason
    result = run_check(kit(broken.Sound, *others), "test_ops_agree_with_their_references")
    assert result.outcome == "passed", result


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (broken.ClaimsBytes, "keys and values of 8 bits are read by a backend's own attention"),
        (broken.ClaimsTheUnknown, "kv_types has ['q3'], known are f32, f16, q8"),
        (broken.HalfIsInteger, "f16 cache): "),
    ],
)
def test_false_claims_about_caches_are_caught(backend, words):
    assert words in failure("kv_types_work", backend)


def test_a_backend_that_samples_as_the_host_passes():
    results = outcomes(broken.Samples, CHOICES)
    assert [r.outcome for r in results.values()] == ["passed"] * 2, results


THE_HOST = "sampled_tokens_are_those_of_the_host"
CHOICES_CAUGHT = [
    (THE_HOST, broken.SamplesTheLastOfEqual, "equal scores"),
    (THE_HOST, broken.SamplesPadding, "60 scores and padding: SamplingMetadata(valid=60"),
    (THE_HOST, broken.SamplesNothing, "are not the likeliest tokens"),
    (THE_HOST, broken.SamplesNumPyIntegers, "sample gives int64, expected int or None"),
    (THE_HOST, broken.SamplesTooFew, "sampled tokens is 49, expected 50"),
    *((THE_HOST, broken.samples_without(**without), "97 scores: SamplingMetadata(valid=97")
      for without in (
        {"temperature": 0.0}, {"temperature": 1.0}, {"top_k": 0}, {"top_p": 1.0}, {"min_p": 0.0},
        {"uniform": 0.5})),
    ("rows_that_are_not_finite_are_left_to_the_host", broken.SamplesFromWhatIsNotFinite,
     "rows that are not finite give ["),
    ("rows_that_are_not_finite_are_left_to_the_host", broken.SamplesPadding,
     "is no reason to give [None, None"),
    (THE_HOST, broken.SamplesByTheBatch, "0 alone, "),
]  # fmt: skip


@pytest.mark.parametrize(("check", "backend", "words"), CHOICES_CAUGHT)
def test_wrong_choices_are_caught(check, backend, words):
    assert words in failure(check, backend)


MODELS_CAUGHT = [
    ("every_family_runs", broken.with_kernels(swiglu="swiglu_of_one_percent_more"),
     "logits of step 1 differ: has an NMSE"),
    ("every_family_runs_packed", broken.with_kernels(linear__q4_k="linear_of_other_rows"),
     "logits of step 1 differ"),
    ("captured_steps_are_the_same_bits", broken.ReplaysTheFirst, "differs if captured"),
]  # fmt: skip


@needs_families
@pytest.mark.parametrize(("check", "backend", "words"), MODELS_CAUGHT)
def test_wrong_models_are_caught(check, backend, words):
    assert words in failure(check, backend, everything=True)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"requires": ("no_such_module",)}, "needs no_such_module, which is not installed"),
        ({"probe": broken.target("cannot_run")}, "there is no such device"),
    ],
)
def test_a_backend_that_cannot_run_here_is_skipped_with_the_reason(facts, words):
    results = outcomes(broken.Sound, OWN, **facts)
    assert {r.outcome for r in results.values()} == {"skipped"}, [
        r for r in results.values() if r.outcome != "skipped"
    ]
    assert all(words in r.reason for r in results.values())


def test_a_kernel_table_that_is_none_is_caught():
    backend = type("Toy", (broken.Sound,), {"kernels": [("silu", "*")]})
    assert "kernels is list, not a mapping" in failure("kernel_table_can_be_loaded", backend)
