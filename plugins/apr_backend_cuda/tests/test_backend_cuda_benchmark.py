"""The benchmark for GPUs: its arithmetic, its tables, and that every phase of it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from apr_backend_cuda.weights.planes import SUPERBLOCK
from apr_core.errors import UsageError
from apr_core.registry import get_registry
from benchmarks.checkpoints import QWEN3_5
from benchmarks.gpu import arithmetic, bench, decode, prefill, table, weights
from benchmarks.gpu.__main__ import PHASES, phases_of
from benchmarks.gpu.agreement import first_difference, same_tokens
from benchmarks.gpu.machine import GIB, Machine, kernel_microseconds
from benchmarks.gpu.shapes import FAMILY, INTERPRETED, hf_config

ROOT = Path(__file__).parents[3]


def run(*arguments, **variables):
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_a_matrix_product_multiplies_and_adds_once_for_every_value_and_token():
    assert arithmetic.matrix_flops(3 * 5, 2) == 2 * 3 * 5 * 2


@pytest.mark.parametrize(("tokens", "before"), [(1, 0), (1, 9), (7, 0), (4, 3)])
def test_attention_counts_what_each_token_looks_at(tokens, before):
    seen = sum(before + i + 1 for i in range(tokens))
    assert arithmetic.attention_flops(3, 8, tokens, before) == 2 * (2 * 3 * 8) * seen


def test_a_prompt_in_two_parts_takes_as_much_attention_as_in_one():
    whole = arithmetic.attention_flops(2, 16, 10)
    parts = [arithmetic.attention_flops(2, 16, 4), arithmetic.attention_flops(2, 16, 6, 4)]
    assert whole == sum(parts)


def test_keys_and_values_of_a_published_size_take_the_published_bytes():
    s = QWEN3_5["9b"]
    each = arithmetic.attention_bytes(s.kv_heads, s.head_dim, 1, 2)
    assert each * s.layers // 4 == 32 << 10


def test_the_chunked_delta_rule_takes_more_work_than_token_by_token_but_not_much():
    chunked = arithmetic.delta_chunk_flops(4, 128, 128, 64)
    by_token = 64 * arithmetic.delta_token_flops(4, 128, 128)
    assert by_token < chunked < 2 * by_token


def test_what_takes_the_least_time_has_a_share_of_one():
    assert arithmetic.share(arithmetic.seconds(6e9, 3e12), 2e-3) == pytest.approx(1)
    assert arithmetic.share(arithmetic.seconds(6e9, 3e12), 8e-3) == pytest.approx(0.25)


def test_a_table_has_its_head_once_and_says_what_is_missing(capsys):
    columns = (table.Column("a", "first", ".1f"), table.Column("b", "second"))
    numbers = table.Table("Numbers", columns)
    numbers.add({"a": 1.25, "b": "x", "hidden": 3})
    numbers.add({"b": None})
    assert capsys.readouterr().out.splitlines()[1:] == [
        "### Numbers",
        "",
        "| first | second |",
        "|---|---|",
        "| 1.2 | x |",
        "| - | - |",
    ]
    assert numbers.rows[0] == {"a": 1.25, "b": "x", "hidden": 3}


def test_the_first_difference_is_the_earliest_token_of_any_sequence():
    a, b = [[1, 2, 3], [1, 2, 3], [7, 7]], [[1, 2, 4], [1, 9, 9], [7, 7]]
    assert first_difference(a, b) == (1, 1)
    assert same_tokens(a, b) == 2 + 1 + 2
    assert first_difference(a, a) is None


def event(key, device, spent):
    return SimpleNamespace(
        key=key, device_type=SimpleNamespace(name=device), self_device_time_total=spent
    )


def test_a_kernels_time_is_without_the_cache_emptied_before_it_and_without_copies():
    events = [
        event("_linear", "CUDA", 7.0), event("_add_parts", "CUDA", 2.0),
        event("void at::native::vectorized_elementwise_kernel<16, at::native::FillFunctor<unsigned "
              "char>>", "CUDA", 400.0),
        event("Memcpy HtoD (Pageable -> Device)", "CUDA", 30.0),
        event("cudaLaunchKernel", "CPU", 9.0),
    ]  # fmt: skip
    assert kernel_microseconds(events) == 9.0


def test_phases_run_in_their_own_order_and_unknown_ones_are_refused():
    assert phases_of("prefill, decode") == ["decode", "prefill"]
    assert phases_of(",".join(PHASES)) == list(PHASES)
    with pytest.raises(UsageError, match="speed"):
        phases_of("decode,speed")


@pytest.mark.parametrize("shape", QWEN3_5)
def test_the_shapes_are_the_published_ones(shape):
    family = get_registry().make("family", FAMILY)
    config = family.config(hf_config(shape, get_registry()))
    assert family.contract().variant_of(config) == shape


def test_the_stand_in_gives_each_tensor_the_format_of_the_recipe():
    family = get_registry().make("family", FAMILY)
    config = family.config(hf_config("9b", get_registry()))
    file = weights.StandIn(family.contract(), config, "q4k", get_registry())
    formats = {name.removeprefix("model."): e.format for name, e in file.tensors.items()}
    assert formats["layers.0.mlp.gate_proj.weight"] == "q4_k"
    assert formats["layers.0.linear_attn.in_proj_a.weight"] == "bf16"
    assert formats["layers.0.linear_attn.A_log"] == "f32"
    assert formats["lm_head.weight"] == "q6_k"
    assert 5.0e9 < sum(e.nbytes for e in file.tensors.values()) < 5.6e9
    raw = file.raw("lm_head.weight")
    assert raw.size == file.tensors["lm_head.weight"].nbytes and raw.strides == (0,)


@pytest.fixture(scope="module")
def built():
    return weights.build("tiny", "q4_k_m", get_registry(), 64)


def test_a_random_model_has_the_kernels_of_one_from_a_file_and_finite_logits(built):
    assert built.model.report.fallbacks == []
    slot = built.model.new_slot()
    logits = built.model.forward([(slot, [5, 6, 7])])
    assert np.isfinite(logits).all() and logits.std() > 0.01
    built.model.free_slot(slot)


def test_random_matrices_have_their_rows_and_no_two_alike(built):
    for w in built.model.matrices():
        assert w.data.rows == w.rows == len(w.data.codes)
        if w.data.codes.dtype == torch.uint8:
            assert len(torch.unique(w.data.codes, dim=0)) == w.rows
            padded = -(-w.cols // SUPERBLOCK) * SUPERBLOCK
            assert w.data.codes.shape[1] == (padded if w.format == "q8_0" else padded // 2)


def test_planes_are_repeated_to_more_rows_and_stay_what_they_were(built):
    few = built.model.matrices()[0].data
    many = weights.grown(few, 3 * few.rows - 1)
    for name, plane in few.extra.items():
        for part in many.extra[name].split(few.rows):
            assert torch.equal(part, plane[: len(part)])
    assert many.nbytes == few.nbytes // few.rows * many.rows


def test_the_floor_is_the_bytes_of_all_matrices_over_the_rate_of_a_copy(built):
    report = table.Report({})
    machine = Machine(torch.device("cpu"), INTERPRETED)
    machine.__dict__["copy_rate"] = 1e9
    b = bench.Bench("tiny", "q4_k_m", None, "", False, INTERPRETED, get_registry(), machine, report)
    row = decode._row(b, built.model, 4, 16, [0.5, 0.1, 0.3], 0.2)
    nbytes = sum(w.data.nbytes for w in built.model.matrices())
    assert row["floor_ms"] == pytest.approx(nbytes / 1e6)
    assert row["of_floor"] == pytest.approx(nbytes / 1e9 / 0.3)
    assert row["tok_s"] == pytest.approx(4 / 0.3) and row["tok_s_logits"] == pytest.approx(20)
    states = 4 * built.model.sequence_bytes(16)
    assert row["state_gib"] == pytest.approx(states / GIB)
    assert row["of_both"] == pytest.approx((nbytes + states) / 1e9 / 0.3)


def test_the_head_is_not_counted_for_tokens_of_a_prompt(built):
    *inside, head = built.model.matrices()
    assert head.rows == built.model.config.vocab_size
    assert prefill.layer_parameters(built.model) == sum(w.rows * w.cols for w in inside)


def attempts(error):
    report = table.Report({})
    machine = Machine(torch.device("cpu"), INTERPRETED)
    b = bench.Bench("tiny", "q4_k_m", None, "", False, INTERPRETED, get_registry(), machine, report)
    work = report.table("Work", (table.Column("n", "n"), table.Column("note", "")))

    def fails():
        raise error

    assert b.attempt(work, {"n": 1}, fails) is None
    assert b.attempt(work, {"n": 2}, lambda: {"found": 3}) == {"found": 3}
    return work.rows, report.failures


def test_a_row_without_memory_says_so_and_the_next_one_is_measured():
    rows, failures = attempts(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert rows[0] == {"n": 1, "note": "out of memory"}
    assert rows[1]["found"] == 3 and failures == []


def test_a_row_that_does_not_fit_says_why():
    rows, failures = attempts(bench.DoesNotFit("does not fit: 9.0 GiB of states, 1.0 GiB free"))
    assert rows[0]["note"] == "does not fit: 9.0 GiB of states, 1.0 GiB free" and not failures


def test_any_other_error_is_a_failure_of_the_run():
    rows, failures = attempts(ValueError("a | b\nmore"))
    assert rows[0]["note"] == "ValueError: a / b"
    assert len(failures) == 1


def test_without_a_gpu_it_says_so_as_apr_does():
    done = run(TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 14 and done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ") and "no CUDA device" in error and hint.startswith("hint: ")


def test_nothing_but_the_tiny_shape_is_interpreted():
    done = run("--shape", "9b", TRITON_INTERPRET="1")
    assert done.returncode == 14 and "--shape tiny" in done.stderr


@pytest.mark.takes_minutes
def test_every_phase_runs(tmp_path):
    file = tmp_path / "found.json"
    done = run("--shape", "tiny", "--checks", "zeros", "--json", str(file), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(file.read_text())
    tables = {t["title"]: t["rows"] for t in results["tables"]}
    wanted = {"Conformance", "Kernels", "Decode", "Prefill", "The same greedy tokens", "Load"}
    assert wanted <= set(tables)
    assert ("transformers" in tables) or any("not installed" in n for n in results["notes"])
    assert not [row for rows in tables.values() for row in rows if row.get("note")]
    assert all(row["tok_s"] > 0 for row in tables["Decode"] + tables["Prefill"])
    assert all(row["same"] == row["tokens"] for row in tables["The same greedy tokens"])
    kernels = {row["kernel"] for row in tables["Kernels"]}
    assert {"linear", "mlp", "attention", "gated_delta", "causal_conv1d", "embed"} <= kernels
    assert tables["Conformance"][0]["passed"] == tables["Conformance"][0]["checks"] == 1
    assert f"## {results['facts']['device']}" in done.stdout
