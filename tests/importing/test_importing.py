"""Import as Python functions: plans, formats, errors by role, sharing of work, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from apr_core.cli.import_ import parse_size, print_summary, run_import
from apr_core.declarations import Family, Quantizer, Recipe, Source
from apr_core.errors import (
    ContractError,
    InputOutputError,
    NotFound,
    PluginBroken,
    PluginNotFound,
    QuantizationError,
    UsageError,
)
from apr_core.format import AprFile, to_float32
from apr_core.importing.choosing import FormatChooser
from apr_core.importing.encoding import ErrorTally
from apr_core.importing.importer import plan_import, write_import
from apr_core.importing.source import find_source
from apr_core.registry import Registry, get_registry
from tests import tiny_checkpoints as tiny

pytestmark = pytest.mark.needs_plugins

GATE = "model.language_model.layers.0.mlp.gate_proj.weight"


class Halves:
    """A third party's format: 16 values as float16, in blocks, so that errors are known."""

    def encode(self, rows):
        cols = -(-rows.shape[1] // 16) * 16
        padded = np.zeros((rows.shape[0], cols), np.float16)
        padded[:, : rows.shape[1]] = rows
        return padded.view(np.uint8).reshape(rows.shape[0], -1)

    def decode(self, raw, cols):
        return raw.view(np.float16)[:, :cols].astype(np.float32)


class EverythingHalves:
    def format_for(self, tensor):
        return "halves"


class WideIfItFits:
    def format_for(self, tensor):
        return "source" if tensor.quant_class == "down" else ("wide", "halves")


class Speechless:
    def format_for(self, tensor):
        return None


class OutOfRange(Halves):
    def encode(self, rows):
        raise QuantizationError("value 9 is too large", "Use f32.")


HERE = __name__


def registry(target="Halves"):
    family = get_registry().get("family", "qwen3_5").declaration
    return Registry.from_declarations({
        "family": [family],
        "third": [
            Quantizer("halves", f"{HERE}:{target}", block=16, bytes_per_block=32),
            Recipe("halves", f"{HERE}:EverythingHalves", formats=("halves",)),
            Quantizer("wide", f"{HERE}:{target}", block=512, bytes_per_block=1024),
            Recipe("wide", f"{HERE}:WideIfItFits", formats=("wide", "halves")),
            Recipe("speechless", f"{HERE}:Speechless"),
        ],
    })  # fmt: skip


def plan(source, recipe="halves", registry_=None, arch=None):
    registry_ = registry_ or registry()
    return plan_import(
        find_source(str(source), registry_), recipe=recipe, arch=arch, registry=registry_
    )


def test_third_party_format_end_to_end(tmp_path):
    source = tiny.write(tmp_path / "c")
    seen = []
    import_plan = plan(source)
    summary = write_import(
        import_plan, tmp_path / "m.apr", progress=lambda name, nbytes: seen.append((name, nbytes))
    )
    assert sum(nbytes for _, nbytes in seen) == import_plan.source_bytes == summary.source_bytes
    with AprFile.open(tmp_path / "m.apr") as file:
        entry = file.tensors[GATE]
        assert entry.format == "halves" and entry.dtype_id >= 192
        assert file.metadata["apr.formats"][0]["distribution"] == "third"
        assert file.metadata["quantization"]["quant_type"] == "halves"
        assert file.metadata["quantization"]["bits"] == 16
        rows = Halves().decode(file.raw(GATE).reshape(entry.shape[0], -1), entry.shape[1])
        kept = file.tensors["model.language_model.layers.0.linear_attn.A_log"]
        assert kept.format == "f32"
    expected = tiny.random(tiny.Tiny())[GATE][1]
    np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-6)


def test_rows_that_a_format_does_not_divide_get_another_and_the_summary_says_so(tmp_path, capsys):
    import_plan = plan(tiny.write(tmp_path / "c"), "wide")
    summary = write_import(import_plan, tmp_path / "m.apr")
    asked = [a for a in import_plan.assignments if a.encoder]
    assert {a.spec.name for a in asked if a.rule.shape[-1] % 512 == 0} <= {"wide"}
    lengths = Counter(a.rule.shape[-1] for a in asked if a.spec.name == "halves")
    reason = "halves instead of wide, whose blocks do not divide rows of {} values"
    assert lengths and summary.fallbacks == {reason.format(n): k for n, k in lengths.items()}
    print_summary(summary)
    assert f"fell back  {lengths[256]} tensors: {reason.format(256)}" in capsys.readouterr().out


def test_summary_counts_and_measures(tmp_path):
    source = tiny.write(tmp_path / "c")
    summary = write_import(plan(source), tmp_path / "m.apr")
    roles = {r.role: r for r in summary.roles}
    tensors = tiny.random(tiny.Tiny())
    gates = [
        v.astype(np.float64)
        for n, (_, v) in tensors.items()
        if n.endswith("gate_proj.weight") and "mtp" not in n
    ]
    miss = [g - g.astype(np.float16).astype(np.float64) for g in gates]
    expected = (sum((m**2).sum() for m in miss) / sum((g**2).sum() for g in gates)) ** 0.5
    assert roles["gate_proj"].relative_error == pytest.approx(expected, rel=1e-3)
    assert roles["input_norm"].relative_error is None
    assert roles["gate_proj"].formats == {"halves": 4}
    assert roles["mtp"].tensors == summary.carried == 15
    assert summary.skipped == {
        "vision tower: apr runs text only": {"tensors": 2, "bytes": 2 * (8 * 3 * 2 * 4 * 4 + 8)}
    }
    stored = {n: v for n, (_, v) in tensors.items() if "visual" not in n}
    assert summary.parameters == sum(v.size for v in stored.values())
    assert summary.file_bytes == (tmp_path / "m.apr").stat().st_size
    assert summary.absent == () and summary.layout == "published" and summary.variant is None
    json.dumps(summary.as_dict())


def test_errors_of_zeros_and_of_many_blocks():
    tally = ErrorTally()
    assert tally.relative == 0.0
    tally.add(1.0, 4.0)
    tally.add(3.0, 12.0)
    assert tally.relative == 0.5


@pytest.mark.parametrize("threads", [1, 3])
def test_same_bytes_for_any_number_of_threads_and_blocks(tmp_path, monkeypatch, threads):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    source = tiny.write(tmp_path / "c")
    write_import(plan(source), tmp_path / "a.apr", threads=2)
    monkeypatch.setattr("apr_core.importing.encoding.BLOCK_VALUES", 1000)
    write_import(plan(source), tmp_path / "b.apr", threads=threads)
    assert (tmp_path / "a.apr").read_bytes() == (tmp_path / "b.apr").read_bytes()


@pytest.mark.parametrize("recipe", ["f32", "f16", "bf16"])
def test_native_recipes_convert_and_say_what_is_lost(tmp_path, recipe):
    source = tiny.write(tmp_path / "c", dtype="F32")
    summary = run_import(str(source), tmp_path / "m.apr", recipe)
    row = next(r for r in summary.roles if r.role == "gate_proj")
    assert row.formats == {recipe: 4}
    # f32 from F32 is a copy; the values are BF16 ones, which only f16 rounds
    assert (row.relative_error is None) == (recipe == "f32")
    assert (row.relative_error or 0) <= 1e-3
    values = tiny.random(tiny.Tiny(dtype="F32"))[GATE][1]
    with AprFile.open(tmp_path / "m.apr") as file:
        stored = to_float32(file.raw(GATE), recipe, values.shape)
    np.testing.assert_allclose(stored, values, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("family", ["qwen2", "qwen3_5"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", [0, 3])
def test_both_families(tmp_path, family, tied, shards):
    layout = "flat" if family == "qwen2" else "published"
    source = tiny.write(tmp_path / "c", family=family, tied=tied, layout=layout, shards=shards)
    summary = run_import(str(source), tmp_path / "m.apr", "q4k")
    assert summary.family == family
    head = next(r for r in summary.roles if r.role == ("embedding" if tied else "lm_head"))
    assert head.formats == {"q6_k": 1}


def test_metadata_of_a_file(tmp_path):
    source = tiny.write(tmp_path / "c")
    (source / "generation_config.json").write_text('{"temperature": 0.7, "eos_token_id": [258]}')
    run_import(str(source), tmp_path / "m.apr", "q4k")
    with AprFile.open(tmp_path / "m.apr") as file:
        m = file.metadata
    expected = {
        "architecture": "qwen3_5", "model_type": "qwen3_5", "hidden_size": 256, "num_layers": 4,
        "num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "vocab_size": 512, "rope_type": 2,
        "intermediate_size": 512, "max_position_embeddings": 1024, "rope_theta": 1e7,
        "rms_norm_eps": 1e-6, "tied_embeddings": True, "original_format": "safetensors",
        "hf_architecture": "Qwen3_5ForConditionalGeneration", "hf_model_type": "qwen3_5",
        "apr.family": "qwen3_5", "apr.recipe": "q4k", "apr.contract_version": 1,
        "apr.family_distribution": "apr-qwen3-5", "apr.source_path": str(source),
        "source_metadata": {"format": "pt"},
        "apr.generation_config": {"temperature": 0.7, "eos_token_id": [258]},
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    }  # fmt: skip
    assert {k: m.get(k) for k in expected} == expected
    assert m["linear_attn_hparams"]["linear_num_value_heads"] == 4
    assert set(m["apr.stop_ids"]) == {256, 258}
    assert len(m["tokenizer.vocabulary"]) == 512


def test_all_tensor_problems_in_one_error(tmp_path):
    source = tiny.write(tmp_path / "c", shards=0)
    tensors = tiny.random(tiny.Tiny())
    del tensors[GATE]
    tensors["model.language_model.norm.weight"] = ("BF16", np.zeros(255, np.float32))
    tensors["something.new"] = ("BF16", np.zeros(4, np.float32))
    tiny.write_weights(source, tensors)
    with pytest.raises(ContractError) as error:
        plan(source)
    for part in (GATE, "[255], expected [256]", "something.new"):
        assert part in error.value.message


def test_mtp_may_be_absent_and_is_reported(tmp_path):
    source = tiny.write(tmp_path / "c", shards=0)
    tiny.write_weights(
        source, {n: t for n, t in tiny.random(tiny.Tiny()).items() if "mtp" not in n}
    )
    summary = write_import(plan(source), tmp_path / "m.apr")
    assert len(summary.absent) == 15 and summary.carried == 0


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("config.json", NotFound, r"config\.json"),
        ("tokenizer.json", NotFound, r"tokenizer\.json"),
        ("model.safetensors", NotFound, "no safetensors"),
    ],
)
def test_missing_files(tmp_path, name, kind, words):
    source = tiny.write(tmp_path / "c", shards=0)
    (source / name).unlink()
    with pytest.raises(kind, match=words):
        plan(source)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_config_that_is_no_object(tmp_path, text):
    source = tiny.write(tmp_path / "c")
    (source / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(Exception, match=r"config\.json") as error:
        plan(source)
    assert error.value.exit_code == 4


def test_unknown_architectures_and_families(tmp_path):
    source = tiny.write(tmp_path / "c")
    config = tiny.config(tiny.Tiny()) | {"architectures": ["OtherForCausalLM"], "model_type": "x"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(PluginNotFound, match="OtherForCausalLM"):
        plan(source)
    assert plan(source, arch="qwen3_5").config.hidden_size == 256  # the user knows better
    with pytest.raises(PluginNotFound, match="mamba"):
        plan(source, arch="mamba")
    (source / "config.json").write_text('{"architectures": 7}')
    with pytest.raises(PluginNotFound):
        plan(source)


def test_without_a_family_plugin_the_error_says_what_to_install(tmp_path):
    source = tiny.write(tmp_path / "c")
    with pytest.raises(PluginNotFound) as error:
        plan(source, registry_=Registry(()))
    assert "pip install apr-qwen3-5" in error.value.hint


def test_recipes_that_cannot_be_followed(tmp_path):
    source = tiny.write(tmp_path / "c")
    with pytest.raises(PluginNotFound, match="q9z"):
        plan(source, "q9z")
    with pytest.raises(PluginBroken, match="speechless"):
        plan(source, "speechless")
    with pytest.raises(PluginNotFound, match="halves"):
        FormatChooser(
            "halves",
            1,
            Registry.from_declarations({"x": [Recipe("halves", f"{HERE}:EverythingHalves")]}),
        ).choose(*_results(source))


def _results(source):
    import_plan = plan(source)
    return import_plan.resolution, import_plan.checkpoint


def test_values_a_format_cannot_hold_name_the_tensor_and_leave_no_file(tmp_path):
    source = tiny.write(tmp_path / "c")
    with pytest.raises(QuantizationError, match=r"tensor '.*': value 9 is too large") as error:
        write_import(plan(source, registry_=registry("OutOfRange")), tmp_path / "m.apr")
    assert error.value.hint == "Use f32."
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_not_finite_values_are_found_in_kept_tensors_with_their_true_row(tmp_path, monkeypatch):
    monkeypatch.setattr("apr_core.importing.encoding.BLOCK_VALUES", 1000)
    options = tiny.Tiny(shards=0)
    source = tiny.write(tmp_path / "c", options)
    tensors = tiny.random(options)
    tensors[GATE][1][100, 7] = np.inf
    tiny.write_weights(source, tensors)
    for recipe in ("source", "halves"):
        with pytest.raises(QuantizationError, match="inf at row 100, column 7"):
            write_import(plan(source, recipe), tmp_path / "m.apr")


def test_target_is_checked_before_anything_is_read(tmp_path):
    with pytest.raises(NotFound, match="directory"):
        run_import("nowhere", tmp_path / "no" / "m.apr", "q4k")
    (tmp_path / "m.apr").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists"):
        run_import("nowhere", tmp_path / "m.apr", "q4k")
    source = tiny.write(tmp_path / "c")
    run_import(str(source), tmp_path / "m.apr", force=True)
    AprFile.open(tmp_path / "m.apr").close()


def test_interrupted_at_any_tensor_nothing_changes(tmp_path):
    source = tiny.write(tmp_path / "c")
    target = tmp_path / "m.apr"
    target.write_bytes(b"older")
    import_plan = plan(source)
    for count in (1, 20, len(import_plan.assignments)):
        calls = []

        def interrupt(name, nbytes, calls=calls, count=count):
            calls.append(name)
            if len(calls) == count:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_import(import_plan, target, force=True, progress=interrupt)
        assert target.read_bytes() == b"older"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "m.apr"]


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        ("missing", NotFound, "no such file or directory"),
        ("Qwen/Qwen3.5-9B", NotFound, "no such file or directory"),
        ("zip://x", PluginNotFound, "zip"),
    ],
)
def test_sources_that_are_not_there(tmp_path, monkeypatch, source, kind, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with pytest.raises(kind, match=words) as error:
        find_source(source, registry())
    if "Qwen" in source:
        assert "write hf://Qwen/Qwen3.5-9B" in error.value.hint


def test_files_are_not_sources(tmp_path):
    source = tiny.write(tmp_path / "c", shards=0)
    with pytest.raises(UsageError, match="expected the directory"):
        find_source(str(source / "model.safetensors"), registry())


def test_sources_of_plugins(tmp_path):
    plugins = Registry.from_declarations({"x": [Source("zip", f"{HERE}:fetch_zip")]})
    source = find_source(f"zip://{tmp_path}", plugins)
    assert source.directory == tmp_path and source.origin == f"zip://{tmp_path}"


def fetch_zip(url, *, progress=None, force=False):
    return url.partition("://")[2]


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("4GiB", 4 << 30), ("500M", 500 << 20), ("1.5 g", 3 << 29), ("2097152", 2 << 20)],
)
def test_sizes(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "4 apples", "0", "-1G", "10K", "1e9"])
def test_sizes_that_are_none(text):
    with pytest.raises(UsageError):
        parse_size(text)


def test_no_room_on_the_disk(tmp_path, monkeypatch):
    source = tiny.write(tmp_path / "c")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputOutputError, match="needs"):
        write_import(plan(source), tmp_path / "m.apr")


def test_memory_is_bounded_by_blocks_not_by_tensors(tmp_path):
    """A 128 MiB embedding is encoded with far less than that on top of the imports."""
    out = tmp_path / "c"
    options = tiny.Tiny(vocab=256 * 1024, layers=4, mtp=False, vision=False)
    tiny.write(out, options)
    code = (
        "import sys, resource; from pathlib import Path\n"
        "from apr_core.cli.import_ import run_import\n"
        "import apr_core.importing.importer as importer\n"
        "importer.tokenizer_metadata = lambda *a: {}\n"
        "import apr_quant_q4k.loops.q8_0, apr_qwen3_5.family\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "before = peak()\n"
        "run_import(sys.argv[1], Path(sys.argv[2]), 'q8_0', threads=2)\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, out, tmp_path / "m.apr"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 96, f"{done.stdout} MiB more than before"


def test_declared_family_is_named_in_conflicts(tmp_path):
    source = tiny.write(tmp_path / "c")
    mine = Family("other", "x:Y", architectures=("Qwen3_5ForConditionalGeneration",))
    family = get_registry().get("family", "qwen3_5").declaration
    both = Registry.from_declarations({"a": [family], "b": [mine]})
    with pytest.raises(Exception, match="other, qwen3_5") as error:
        plan(source, "source", both)
    assert "`arch`" in error.value.hint
