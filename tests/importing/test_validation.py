"""Validation: every check passes on a good file, fails on the damage it is for, or says not run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from math import log10
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from apr_core.declarations import Family, Quantizer
from apr_core.errors import ContractError, NotFound, UsageError
from apr_core.family.contract import Resolution, TensorRule
from apr_core.family.modelspec import ModelConfig
from apr_core.format import NATIVE, AprFile, FormatSpec
from apr_core.registry import Registry
from apr_core.validation.report import Report, score
from apr_core.validation.validate import check_file, work_bytes
from apr_core.validation.values import tensor_stats
from tests.apr_files import write

HIDDEN, ROWS = 32, 24
HF = {"hidden_size": HIDDEN, "architectures": ["ToyForCausalLM"]}
TOY = FormatSpec("toy8", None, 16, 20, "apr-toy")


class Toy8:
    """16 values: an f32 scale and 16 int8."""

    def encode(self, rows: np.ndarray) -> np.ndarray:
        blocks = rows.reshape(len(rows), -1, 16)
        scale = (np.abs(blocks).max(-1, keepdims=True) / 127).astype(np.float32)
        codes = np.rint(blocks / np.where(scale == 0, 1, scale)).astype(np.int8)
        packed = np.concatenate([scale.view(np.uint8), codes.view(np.uint8)], -1)
        return packed.reshape(len(rows), -1)

    def decode(self, raw: np.ndarray, cols: int) -> np.ndarray:
        blocks = raw.reshape(len(raw), -1, 20)
        scale = np.ascontiguousarray(blocks[..., :4]).view(np.float32)
        codes = np.ascontiguousarray(blocks[..., 4:]).view(np.int8)
        return (codes * scale).reshape(len(raw), -1)[:, :cols].astype(np.float32)


class ToyContract:
    """Just enough of a contract: an embedding, and per layer a norm and a matrix."""

    family, version, norm_offset = "toy", 1, 1.0
    plain_norms = frozenset({"plain_norm"})

    def check(self, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Resolution:
        rules = {"embed": TensorRule("embed", "embedding", None, (ROWS, HIDDEN), "embedding")}
        for n in range(config.num_layers):
            for role, shape in (("up", (HIDDEN, HIDDEN)), ("norm", (HIDDEN,))):
                name = f"layers.{n}.{role}"
                rules[name] = TensorRule(name, role, n, shape, "matrix")
        if set(rules) != set(shapes):
            raise ContractError(f"tensors do not fit: {sorted(set(rules) ^ set(shapes))}")
        return Resolution("flat", rules)


class ToyFamily:
    def contract(self) -> ToyContract:
        return ToyContract()

    def config(self, hf: Mapping[str, Any], generation: Any = None) -> ModelConfig:
        return ModelConfig(
            "toy",
            "ToyForCausalLM",
            hf["hidden_size"],
            3,
            1,
            1,
            8,
            16,
            ROWS,
            64,
            1e4,
            1e-6,
            True,
            ("full",) * 3,
            stop_ids=(1,),
        )


def make_registry(*names: str) -> Registry:
    all_ = {
        "family": Family("toy", "tests.importing.test_validation:ToyFamily"),
        "quantizer": Quantizer(
            "toy8", "tests.importing.test_validation:Toy8", block=16, bytes_per_block=20
        ),
    }
    return Registry.from_declarations({"apr-toy": [all_[n] for n in names or all_]})


def tokenizer_metadata() -> dict[str, Any]:
    """A byte-level BPE of a few tokens, with bytes as unknowns."""
    vocabulary = ["<unk>", "<eos>", "a", "b", "ab", *(f"<|pad_{i}|>" for i in range(5, ROWS))]
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": 5, "merges": None,
        },
    }  # fmt: skip
    return {
        "tokenizer.vocabulary": vocabulary,
        "tokenizer.merges": ["a b"],
        "tokenizer.vocab_size": ROWS,
        "tokenizer.eos_token_id": 1,
        "apr.tokenizer_json": json.dumps({"tokenizer": content, "pairs": False}),
        "apr.stop_ids": [1],
    }


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors = {"embed": rng.normal(0, 0.02, (ROWS, HIDDEN))}
    for n in range(3):
        tensors[f"layers.{n}.up"] = rng.normal(0, 0.02, (HIDDEN, HIDDEN))
        tensors[f"layers.{n}.norm"] = np.zeros(HIDDEN)
    return {k: v.astype(np.float32) for k, v in tensors.items()}


def save(
    path: Path, tensors: dict[str, np.ndarray] | None = None, quantize: bool = True, **metadata: Any
) -> Path:
    full = {"architecture": "toy", "hf_config": HF, "source": "toy"} | tokenizer_metadata()
    full = {k: v for k, v in (full | metadata).items() if v is not None}
    stored = {
        name: (TOY, t.shape, Toy8().encode(t).tobytes()) if quantize and name.endswith("up") else t
        for name, t in (tensors if tensors is not None else weights()).items()
    }
    return write(path, full, stored, force=True)


def check(path: Path, registry: Registry | None = None, **options: Any) -> Report:
    with AprFile.open(path) as file:
        return check_file(file, registry or make_registry(), **options)


def statuses(report: Report) -> dict[str, str]:
    return {c.name: c.status for c in report.checks}


def detail(report: Report, name: str) -> str:
    return next(c.detail for c in report.checks if c.name == name)


def make_source(directory: Path) -> Path:
    directory.mkdir()
    save_file(weights(), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(HF))
    return directory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "checkpoint")


def test_good_file_passes_everything(tmp_path: Path) -> None:
    report = check(save(tmp_path / "m.apr"))
    assert [c for c in report.checks if c.status != "passed"] == []
    assert set(statuses(report)) == {
        "structure",
        "header-checksum",
        "footer-checksum",
        "padding",
        "contract",
        "values-finite",
        "values-plausible",
        "tokenizer-vocabulary",
        "tokenizer-ids",
        "tokenizer-merges",
        "tokenizer-loads",
        "stop-ids",
    }
    assert report.valid and report.score is None
    assert report.as_dict()["score"] is None and "tensors" not in report.as_dict()


def test_progress_adds_up(tmp_path: Path) -> None:
    seen: list[int] = []
    with AprFile.open(save(tmp_path / "m.apr")) as file:
        check_file(file, make_registry(), advance=seen.append)
        assert sum(seen) + 4 == work_bytes(file)  # the footer's own bytes are not summed


def test_flipped_bit_and_dirty_padding(tmp_path: Path) -> None:
    path = save(tmp_path / "m.apr")
    raw = bytearray(path.read_bytes())
    with AprFile.open(path) as file:
        raw[64 + file.header.metadata_size] = 1
    path.write_bytes(raw)
    outcomes = statuses(check(path))
    assert outcomes["footer-checksum"] == "failed" and outcomes["padding"] == "failed"
    assert outcomes["structure"] == "passed"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    tensors = weights()
    tensors["layers.1.norm"][3] = value
    report = check(save(tmp_path / "m.apr", tensors))
    assert statuses(report)["values-finite"] == "failed"
    assert "layers.1.norm" in detail(report, "values-finite")


def break_scale(t: np.ndarray) -> None:
    t *= 1e5


def break_tiny(t: np.ndarray) -> None:
    t *= 1e-5


def break_rows(t: np.ndarray) -> None:
    t[: HIDDEN // 2] = 0


@pytest.mark.parametrize(
    ("name", "damage", "text"),
    [
        ("layers.0.up", lambda t: t.fill(0), "is all zero"),
        ("embed", lambda t: t.fill(0), "is all zero"),
        ("layers.2.up", lambda t: t.fill(0.5), "is 0.5 everywhere"),
        ("layers.1.up", break_rows, "16 of 32 rows all zero"),
        ("layers.1.up", break_scale, "has standard deviation"),
        ("layers.1.up", break_tiny, "has standard deviation"),
        ("layers.1.norm", lambda t: t.fill(-1), "multiplies by 0"),
        ("layers.1.norm", lambda t: t.fill(1e4), "multiplies by 1e"),
    ],
)
def test_implausible_values(tmp_path: Path, name: str, damage: Any, text: str) -> None:
    tensors = weights()
    damage(tensors[name])
    report = check(save(tmp_path / "m.apr", tensors, quantize=False))
    assert statuses(report)["values-plausible"] == "failed"
    assert name in detail(report, "values-plausible") and text in detail(report, "values-plausible")
    assert not report.valid


def test_one_layer_unlike_the_others(tmp_path: Path) -> None:
    tensors = weights()
    tensors["layers.1.up"] *= 150
    report = check(save(tmp_path / "m.apr", tensors, quantize=False))
    assert "other layers" in detail(report, "values-plausible")


def test_unused_tokens_may_be_zero(tmp_path: Path) -> None:
    tensors = weights()
    tensors["embed"][ROWS // 4 :] = 0
    assert check(save(tmp_path / "m.apr", tensors)).valid


def test_contract_that_is_not_met(tmp_path: Path) -> None:
    tensors = weights()
    del tensors["layers.2.norm"]
    report = check(save(tmp_path / "m.apr", tensors))
    assert statuses(report)["contract"] == "failed"
    assert "layers.2.norm" in detail(report, "contract")
    assert statuses(report)["values-plausible"] == "not_run"


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"hf_config": None}, "no `hf_config`"),
        ({"architecture": None}, "no `architecture`"),
        ({"architecture": 5}, "no `architecture`"),
        ({"hf_config": {}}, "cannot read hf_config: KeyError"),  # the plugin's own mistake
    ],
)
def test_metadata_that_says_no_model(tmp_path: Path, metadata: dict, text: str) -> None:
    report = check(save(tmp_path / "m.apr", **metadata))
    assert statuses(report)["contract"] == "failed"
    assert text in detail(report, "contract")
    assert statuses(report)["stop-ids"] == "not_run"


def test_without_family_plugin_nothing_is_counted_as_passed(tmp_path: Path) -> None:
    report = check(save(tmp_path / "m.apr"), make_registry("quantizer"))
    outcomes = statuses(report)
    assert outcomes["contract"] == outcomes["values-plausible"] == outcomes["stop-ids"] == "not_run"
    assert outcomes["tokenizer-ids"] == "not_run"
    assert "family 'toy'" in detail(report, "contract")
    assert report.valid and report.ran == len(report.checks) - 4


def test_without_quantizer_the_values_are_not_checked(tmp_path: Path) -> None:
    report = check(save(tmp_path / "m.apr"), make_registry("family"))
    assert statuses(report)["values-finite"] == "not_run"
    assert statuses(report)["values-plausible"] == "not_run"
    assert "3 of 7 tensors" in detail(report, "values-finite")
    assert "pip install apr-toy" in detail(report, "values-finite")
    tensors = weights()
    tensors["embed"][0, 0] = np.nan  # what can be read and is wrong still fails
    report = check(save(tmp_path / "m.apr", tensors), make_registry("family"))
    assert statuses(report)["values-finite"] == "failed"


def test_plugin_of_another_block_size(tmp_path: Path) -> None:
    other = Quantizer("toy8", "tests.importing.test_validation:Toy8", block=16, bytes_per_block=18)
    report = check(save(tmp_path / "m.apr"), Registry.from_declarations({"apr-toy": [other]}))
    assert "(16, 20), the installed plugin says (16, 18)" in detail(report, "values-finite")


@pytest.mark.parametrize(
    ("metadata", "name", "text"),
    [
        ({"tokenizer.vocabulary": None}, "tokenizer-vocabulary", "no tokenizer.vocabulary"),
        ({"tokenizer.vocabulary": "x"}, "tokenizer-vocabulary", "not a list"),
        ({"tokenizer.vocabulary": []}, "tokenizer-vocabulary", "not a list"),
        ({"tokenizer.vocabulary": ["a", 7, None]}, "tokenizer-vocabulary", "id 1 is 7"),
        ({"tokenizer.vocabulary": ["a"] * ROWS}, "tokenizer-vocabulary", "more than once"),
        ({"tokenizer.vocab_size": 3}, "tokenizer-vocabulary", "tokenizer.vocab_size is 3"),
        (
            {"tokenizer.vocabulary": [str(i) for i in range(ROWS + 1)]},
            "tokenizer-ids",
            "the embedding has 24 rows",
        ),
        ({"tokenizer.eos_token_id": ROWS}, "tokenizer-ids", "eos_token_id is 24"),
        ({"tokenizer.bos_token_id": "x"}, "tokenizer-ids", "bos_token_id is 'x'"),
        ({"tokenizer.padding_token_id": -1}, "tokenizer-ids", "padding_token_id is -1"),
        ({"tokenizer.merges": ["a z"]}, "tokenizer-merges", "makes 'az', which is no token"),
        ({"tokenizer.merges": [["a", "b"]]}, "tokenizer-merges", "expected 'left right'"),
        ({"tokenizer.merges": {}}, "tokenizer-merges", "not a list"),
        ({"apr.tokenizer_json": None}, "tokenizer-loads", "no tokenizer"),
        ({"apr.tokenizer_json": "{"}, "tokenizer-loads", "damaged"),
        ({"apr.tokenizer_json": "[]"}, "tokenizer-loads", "damaged"),
        ({"apr.stop_ids": [ROWS]}, "stop-ids", "stop id 24"),
        ({"apr.stop_ids": ["x"]}, "stop-ids", "stop id"),
        ({"apr.stop_ids": 3}, "stop-ids", "not a list"),
    ],
)
def test_damaged_tokenizers(tmp_path: Path, metadata: dict, name: str, text: str) -> None:
    report = check(save(tmp_path / "m.apr", **metadata))
    assert statuses(report)[name] == "failed"
    assert text in detail(report, name)


JUNK = (None, 5, -1, 1e300, True, "x", "\0", [], [1], [[]], {}, {"model": 1}, {"text_config": []})


def test_junk_in_any_key_is_a_finding_not_a_crash(tmp_path: Path) -> None:
    from apr_core.cli.inspect import describe

    keys = [
        *tokenizer_metadata(), "architecture", "hf_config", "apr.family", "apr.source_path",
        "apr.generation_config", "chat_template", "source", "special_tokens", "sharding",
        "apr.tokenizer_json_zlib", "tokenizer.model_type", "quantization",
    ]  # fmt: skip
    for key in keys:
        for junk in JUNK:
            metadata = {"apr.generation_config": {}, key: junk}
            with AprFile.open(save(tmp_path / "m.apr", **metadata)) as file:
                json.dumps(check_file(file, make_registry(), quality=True).as_dict())
                json.dumps(describe(file, full=False), allow_nan=False)


def test_no_stop_id_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    original = ToyFamily.config
    monkeypatch.setattr(
        ToyFamily, "config", lambda self, hf, g=None: replace(original(self, hf), stop_ids=())
    )
    report = check(save(tmp_path / "m.apr", **{"apr.stop_ids": []}))
    assert "would never end" in detail(report, "stop-ids")


def test_quality_against_the_source(tmp_path: Path, source: Path) -> None:
    report = check(save(tmp_path / "m.apr"), quality=True, source=str(source))
    assert statuses(report)["quantization-error"] == "passed"
    errors = {t.name: t for t in report.tensors or []}
    assert len(errors) == 7
    assert errors["embed"].relative_rmse == 0 and errors["embed"].snr_db is None
    up = weights()["layers.0.up"]
    decoded = Toy8().decode(Toy8().encode(up), HIDDEN)
    expected = np.linalg.norm(decoded - up) / np.linalg.norm(up)
    assert errors["layers.0.up"].relative_rmse == pytest.approx(expected, rel=1e-5)
    assert errors["layers.0.up"].snr_db == pytest.approx(-20 * log10(expected), rel=1e-5)
    counts = {n: w.size for n, w in weights().items()}
    overall = sum(e.relative_rmse**2 * counts[n] for n, e in errors.items()) / sum(counts.values())
    assert report.overall_error == pytest.approx(overall**0.5)
    assert report.score == pytest.approx(100 * (1 - 2 * overall**0.5), abs=0.05)
    assert report.as_dict()["relative_rmse"] == report.overall_error


def test_source_is_found_by_the_path_in_the_file(tmp_path: Path, source: Path) -> None:
    path = save(tmp_path / "m.apr", **{"apr.source_path": str(source)})
    assert statuses(check(path, quality=True))["quantization-error"] == "passed"
    (source / "config.json").write_text("{}")
    report = check(path, quality=True)
    assert "holds another model" in detail(report, "quantization-error")
    (source / "config.json").write_text("{")
    assert "cannot be read" in detail(check(path, quality=True), "quantization-error")
    shutil.rmtree(source)
    report = check(path, quality=True)
    assert statuses(report)["quantization-error"] == "not_run"
    assert "not there any more" in detail(report, "quantization-error")
    assert report.score == 100.0 and report.ran == len(report.checks) - 1
    assert report.as_dict()["tensors"] == []


@pytest.mark.parametrize("where", [None, 5, "\0", "x" * 5000])
def test_no_source(tmp_path: Path, where: object) -> None:
    report = check(save(tmp_path / "m.apr", **{"apr.source_path": where}), quality=True)
    assert statuses(report)["quantization-error"] == "not_run"
    assert "`source`" in detail(report, "quantization-error")


def test_source_typed_wrong_is_an_error(tmp_path: Path, source: Path) -> None:
    path = save(tmp_path / "m.apr")
    with pytest.raises(NotFound):
        check(path, quality=True, source=str(tmp_path / "none"))
    (source / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="not the one the file was made from"):
        check(path, quality=True, source=str(source))


def test_error_beyond_the_limit_fails(tmp_path: Path, source: Path) -> None:
    tensors = weights()
    tensors["layers.1.up"] = weights(seed=9)["layers.1.up"]  # plausible, but another tensor
    report = check(save(tmp_path / "m.apr", tensors), quality=True, source=str(source))
    assert statuses(report)["values-plausible"] == "passed"
    assert statuses(report)["quantization-error"] == "failed"
    assert "layers.1.up (toy8) lost 1.4" in detail(report, "quantization-error")
    assert not report.valid and report.score is not None and report.score < 60


def test_one_bit_of_a_float_tensor_fails_quality(tmp_path: Path, source: Path) -> None:
    tensors = weights()
    tensors["embed"][0, 0] = np.nextafter(tensors["embed"][0, 0], 1)
    report = check(save(tmp_path / "m.apr", tensors), quality=True, source=str(source))
    assert "embed (f32) lost" in detail(report, "quantization-error")


def test_tensors_the_source_lacks_or_has_otherwise(tmp_path: Path, source: Path) -> None:
    partial = {k: v for k, v in weights().items() if k != "embed"}
    save_file(partial, source / "model.safetensors")
    report = check(save(tmp_path / "m.apr"), quality=True, source=str(source))
    assert "1 not in the source" in detail(report, "quantization-error")
    save_file({**partial, "embed": np.ones((2, 2), np.float32)}, source / "model.safetensors")
    report = check(save(tmp_path / "m.apr"), quality=True, source=str(source))
    assert statuses(report)["quantization-error"] == "failed"
    assert "embed has shape" in detail(report, "quantization-error")
    save_file({"else": np.ones(2, np.float32)}, source / "model.safetensors")
    report = check(save(tmp_path / "m.apr"), quality=True, source=str(source))
    assert statuses(report)["quantization-error"] == "not_run"


def test_quality_without_the_quantizer_did_not_run(tmp_path: Path, source: Path) -> None:
    path = save(tmp_path / "m.apr")
    report = check(path, make_registry("family"), quality=True, source=str(source))
    assert statuses(report)["quantization-error"] == "not_run"
    assert "pip install apr-toy" in detail(report, "quantization-error")


def test_score_is_the_documented_function() -> None:
    assert score(12, 12, None) == 100.0
    assert score(12, 12, 0.0) == 100.0
    assert score(12, 12, 0.075) == 85.0
    assert score(6, 12, 0.075) == 42.5
    assert score(12, 12, 0.5) == score(12, 12, 3.0) == 0.0


def test_statistics_in_pieces_equal_numpy() -> None:
    values = np.random.default_rng(3).normal(5, 2, (100, 7)).astype(np.float32)
    values[3, 3], values[50, 1], values[60] = np.nan, -np.inf, 0
    stats = tensor_stats([values[:10], values[10:11], values[11:]])
    finite = values[np.isfinite(values)].astype(np.float64)
    assert (stats.count, stats.nan, stats.inf, stats.zeros, stats.zero_rows) == (700, 1, 1, 7, 1)
    assert stats.mean == pytest.approx(finite.mean()) and stats.std == pytest.approx(finite.std())
    assert (stats.minimum, stats.maximum) == (finite.min(), finite.max())
    assert stats.as_dict()["zeros_share"] == pytest.approx(0.01)


def test_statistics_of_nothing_and_of_nan() -> None:
    assert tensor_stats([]).as_dict()["mean"] is None
    only = tensor_stats([np.full((1, 3), np.nan, np.float32)])
    assert only.as_dict()["min"] is None and only.nan == 3
    json.dumps(only.as_dict(), allow_nan=False)


def test_huge_rows_are_decoded_in_pieces(tmp_path: Path) -> None:
    from apr_core.validation.values import PIECE, TensorReader

    cols = PIECE + 16
    raw = Toy8().encode(np.ones((1, cols), np.float32)).tobytes()
    tensors = {"a": (TOY, (1, cols), raw), "b": (NATIVE["i8"], (2, cols), b"\1" * 2 * cols)}
    with AprFile.open(write(tmp_path / "m.apr", {}, tensors)) as file:
        reader = TensorReader(file, make_registry())
        for name, count in (("a", cols), ("b", 2 * cols)):
            sizes = [piece.size for piece in reader.pieces(file.tensors[name])]
            assert max(sizes) <= PIECE and sum(sizes) == count
            assert tensor_stats(reader.pieces(file.tensors[name])).mean == pytest.approx(1)


def test_every_check_is_documented(tmp_path: Path) -> None:
    manual = Path(__file__).parents[2] / "docs" / "reference" / "validation.md"
    listed = {
        line.split("`")[1] for line in manual.read_text("utf-8").splitlines() if line[:3] == "| `"
    }
    assert listed == set(statuses(check(save(tmp_path / "m.apr"), quality=True)))
