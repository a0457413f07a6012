"""The kernel kit: a sound kernel passes, and each check catches the kernel made to fail it."""

from __future__ import annotations

import pytest

from apr_core.declarations import Backend, Kernel
from apr_core.registry import Registry
from apr_devkit.kits import KernelConformance
from apr_devkit.kits.checks import run_check
from tests.kits.broken import backends as broken
from tests.kits.caught import own_checks

OWN = own_checks(KernelConformance)
PLAIN = Backend("toy", broken.target("PACKED"), summary="a toy")


def kernel(target, op="swiglu", weight="*", backend="toy"):
    where = target if ":" in target else broken.target(target)
    return Kernel("toy/fast", where, summary="fast", backend=backend, op=op, weight=weight)


def kit(declared, backend=PLAIN, others=()):
    """A kit of one kernel, for a backend of another distribution."""
    registry = Registry.from_declarations(
        {"fast": [declared], "toys": [backend], "others": list(others)}
    )
    return type("Toy", (KernelConformance,), {"kernel": "toy/fast", "registry": registry})


def outcome(check, declared, **options):
    return run_check(kit(declared, **options), f"test_{check}")


@pytest.mark.parametrize(
    ("target", "op", "weight"),
    [("swiglu", "swiglu", "*"), ("linear", "linear", "f16"), ("linear", "linear", "layout")],
)
def test_a_sound_kernel_passes_everything(target, op, weight):
    of = kit(kernel(target, op, weight))
    results = {name: run_check(of, name) for name in OWN}
    assert {r.outcome for r in results.values()} == {"passed"}, results
    assert len(results) == 5


CAUGHT = [
    ("it_agrees_with_the_reference", "swiglu_of_one_percent_more", "has an NMSE of 1.0e-04"),
    ("it_agrees_with_the_reference", "swiglu_in_double", "is float64, expected float32"),
    ("it_agrees_with_the_reference", "no_such_kernel", "cannot be loaded"),
    ("views_are_read_where_they_are", "swiglu_of_whole_rows", "NaN or infinite"),
    ("other_memory_neither_changes_nor_shows", "swiglu_but_for_the_last", "NaN or infinite"),
    ("other_memory_neither_changes_nor_shows", "swiglu_in_place", "changes argument 0"),
    (
        "other_memory_neither_changes_nor_shows",
        "swiglu_into_one_buffer",
        "is overwritten by a later call",
    ),
]


@pytest.mark.parametrize(("check", "target", "words"), CAUGHT)
def test_wrong_kernels_are_caught(check, target, words):
    result = outcome(check, kernel(target))
    assert result.outcome == "failed" and words in result.reason, result


@pytest.mark.parametrize(
    ("weight", "target", "words"),
    [
        ("f16", "linear_of_one_percent_more", "f16): result 1 of call 1 has an NMSE of 1.0e-04"),
        ("layout", "linear_of_one_percent_more", "1.0100 times the expected values"),
        ("*", "linear_of_other_rows", "has an NMSE of"),
    ],
)
def test_wrong_products_are_caught(weight, target, words):
    result = outcome("it_agrees_with_the_reference", kernel(target, "linear", weight))
    assert result.outcome == "failed" and words in result.reason, result


@pytest.mark.parametrize("weight", ["f16", "layout", "*"])
def test_a_result_that_is_kept_with_the_weight_is_caught(weight):
    declared = kernel("linear_into_the_weights_buffer", "linear", weight)
    result = outcome("other_memory_neither_changes_nor_shows", declared)
    assert result.outcome == "failed" and "is overwritten by a later call" in result.reason, result


def test_bits_that_depend_on_the_batch_are_caught_where_the_backend_claims_them():
    bitwise = Backend("toy", broken.target("SoundBits"), summary="a toy")
    check = "rows_alone_equal_rows_in_a_batch"
    result = outcome(check, kernel("swiglu_by_the_batch"), backend=bitwise)
    assert result.outcome == "failed" and "alone: result 1 of call 1 differs" in result.reason
    assert outcome(check, kernel("swiglu_by_the_batch")).outcome == "passed"


def test_a_kernel_that_is_never_looked_up_is_caught():
    result = outcome("declaration_can_be_looked_up", kernel("swiglu", weight="f16"))
    assert result.outcome == "failed" and "swiglu[f16] is never looked up" in result.reason
    for declared in (kernel("swiglu", op=""), kernel("swiglu", backend="")):
        result = outcome("declaration_can_be_looked_up", declared)
        assert result.outcome == "failed" and "names no" in result.reason


def test_two_kernels_for_one_op_are_caught():
    other = Kernel("toy/faster", broken.target("swiglu"), backend="toy", op="swiglu")
    result = outcome("declaration_can_be_looked_up", kernel("swiglu"), others=[other])
    assert result.outcome == "failed"
    assert "fast and others both bring a kernel for swiglu[*] on backend 'toy'" in result.reason


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (kernel("swiglu", backend="gone"), "no installed plugin provides backend 'gone'"),
        (kernel("swiglu", op="warp"), "no plugin is installed that brings the op 'warp'"),
        (kernel("linear", "linear", "q3"), "no quantizer is installed for 'q3'"),
    ],
)
def test_what_cannot_be_compared_here_is_skipped_with_a_reason(declared, words):
    result = outcome("it_agrees_with_the_reference", declared)
    assert result.outcome == "skipped" and words in result.reason, result
