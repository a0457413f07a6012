"""Models run layer by layer, and compared: tensors, metadata, predictions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from apr_core import load
from apr_core.cli import run
from apr_core.cli.import_ import run_import
from apr_core.format import AprFile
from apr_core.registry import get_registry
from apr_devkit.tiny import tiny_apr, tiny_checkpoint
from apr_eval.divergence import compared, measure, pieces_of, summary
from apr_eval.layerwise import open_layerwise

pytestmark = pytest.mark.needs_plugins

FAMILIES = ("gemma3", "llama", "qwen2", "qwen3", "qwen3_5", "qwen3_5_moe")
TEXT = "The quick brown fox jumps over the lazy dog. " * 40


def sequences(vocab, lengths=(70, 33, 128)):
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocab, n).tolist() for n in lengths]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("watched", [False, True])
def test_layer_by_layer_gives_the_logits_of_the_whole_model(tmp_path, family, watched):
    path, seen, layers = tiny_apr(family, tmp_path, "f32", registry=get_registry()), [], []

    def watch(weight, args):
        assert args[0].shape[-1] == weight.cols or weight.name.endswith("embed_tokens.weight")
        seen.append(weight.name)

    with open_layerwise(str(path), watch=watch if watched else None) as model:
        ids, held = sequences(model.config.vocab_size), model.held
        states = model.hidden(ids, lambda done, total: layers.append(held_layers(held)))
        logits = np.concatenate(list(model.logits(states)))
    assert max(map(len, layers)) == 1, "matrices of several layers are in memory"
    assert len({layer for each in layers for layer in each}) == model.config.num_layers
    with load(path) as whole:
        expected = np.concatenate([whole.logits(each) for each in ids])
        names = {matrix.name for matrix in whole.matrices()}
    np.testing.assert_array_equal(logits, expected)
    assert not watched or names <= set(seen)


def held_layers(held):
    return {layer for layer, _ in held.matrices if layer is not None}


@pytest.mark.parametrize("family", ["qwen2", "qwen3_5_moe"])
def test_a_checkpoint_is_run_in_its_own_formats(tmp_path, family):
    checkpoint = tiny_checkpoint(family, tmp_path / "checkpoint")
    run_import(str(checkpoint), tmp_path / "model.apr", "source")
    with open_layerwise(str(checkpoint)) as model:
        ids = sequences(model.config.vocab_size)
        logits = np.concatenate(list(model.logits(model.hidden(ids))))
    with load(tmp_path / "model.apr", kv_type="f32") as whole:
        expected = np.concatenate([whole.logits(each) for each in ids])
    np.testing.assert_array_equal(logits, expected)


def test_divergence_is_that_of_the_formula(tmp_path):
    names, registry = ("f32", "q4_k_m"), get_registry()
    first, second = (tiny_apr("llama", tmp_path / n, n, registry=registry) for n in names)
    rng = np.random.default_rng(1)
    with open_layerwise(str(first)) as p, open_layerwise(str(second)) as q:
        pieces = pieces_of(rng.integers(0, p.config.vocab_size, 200).tolist(), 64)
        found = measure(p, q, pieces)
    with load(first) as p, load(second, kv_type="f32") as q:
        a, b = (np.stack([m.logits(each)[31:-1] for each in pieces]) for m in (p, q))
    log_p, log_q = (log_softmax(x.astype(np.float64)) for x in (a, b))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    told = np.array(pieces)[:, 32:, None]
    loss_p, loss_q = (-np.take_along_axis(x, told, -1) for x in (log_p, log_q))
    assert found.tokens == kl.size == 96
    assert found.mean.value == pytest.approx(kl.mean(), rel=1e-4)
    assert found.p99.value == pytest.approx(np.quantile(kl, 0.99), rel=1e-4)
    assert found.same_top.value == (a.argmax(-1) == b.argmax(-1)).mean()
    assert found.perplexity.value == pytest.approx(np.exp(loss_p.mean()), rel=1e-5)
    ratio = np.exp((loss_q - loss_p).mean())
    assert found.perplexity_ratio.value == pytest.approx(ratio, rel=1e-5)
    assert 0 < found.mean.error < found.mean.value


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_equal_rows_do_not_diverge_and_certain_ones_diverge_by_the_logarithm():
    rows = np.random.default_rng(2).standard_normal((5, 300)).astype(np.float32) * 8
    found = compared(rows, rows, np.arange(5))
    assert (found[:, 0] == 0).all() and found[:, 1].all()
    flat = np.zeros((1, 256), np.float32)
    sure = np.full((1, 256), -200, np.float32)
    sure[0, 7] = 0
    assert compared(sure, flat, np.array([7]))[0] == pytest.approx([np.log(256), 0, 0, np.log(256)])


def test_the_error_is_that_of_a_mean_of_pieces():
    rng = np.random.default_rng(3)
    parts = [np.repeat(rng.normal(5, 1, (1, 4)), 50, axis=0) for _ in range(200)]  # alike inside
    assert summary(parts).mean.error == pytest.approx(1 / np.sqrt(200), rel=0.2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, registry = tmp_path_factory.mktemp("diff"), get_registry()
    return {r: tiny_apr("qwen2", folder / r, r, registry=registry) for r in ("f32", "q8_0", "q4k")}


def told(capsys, *arguments):
    code = run(["diff", *map(str, arguments)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_every_tensor_is_compared_by_its_values(capsys, files):
    code, out, _ = told(capsys, files["f32"], files["q8_0"], "--json")
    result = json.loads(out)
    with AprFile.open(files["f32"]) as file:
        assert {row["name"] for row in result["tensors"]} == set(file.tensors)
    by_name = {row["name"]: row for row in result["tensors"]}
    matrix = by_name["model.layers.0.mlp.up_proj.weight"]
    assert matrix["formats"] == ["f32", "q8_0"] and 0.001 < matrix["relative"] < 0.01
    assert matrix["cosine"] == pytest.approx(1, abs=1e-4) and not matrix["identical"]
    assert by_name["model.norm.weight"]["relative"] == 0
    assert result["metadata"]["apr.recipe"][1] == "q8_0"
    assert code == 0 and result["only"] == [[], []]


def test_the_same_file_has_no_differences(capsys, files):
    code, out, _ = told(capsys, files["f32"], files["f32"])
    assert code == 0 and out.count("\n") == 1 and "all of them identical" in out


def test_other_shapes_and_missing_tensors_are_named(capsys, files, tmp_path):
    config = get_registry().make("family", "qwen2").tiny_config()
    config |= {"num_hidden_layers": config["num_hidden_layers"] - 1, "intermediate_size": 96}
    checkpoint = tiny_checkpoint("qwen2", tmp_path / "other", config=config)
    code, out, _ = told(capsys, files["f32"], checkpoint)
    assert code == 0 and "only in" in out and "the shapes differ" in out


def test_predictions_are_compared_on_a_text(capsys, files, tmp_path):
    (tmp_path / "text").write_text(TEXT)
    options = ("--logits", "--text", tmp_path / "text", "--context", 64)
    code, out, _ = told(capsys, files["f32"], files["q4k"], *options, "--json")
    found = json.loads(out)["divergence"]
    assert code == 0 and found["mean"]["value"] > 0 and found["tokens"] >= 64
    code, out, _ = told(capsys, files["f32"], files["f32"], *options)
    assert code == 0 and "100.00 %" in out


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--logits",), 2, "--logits and --text FILE belong together"),
        (("--logits", "--text", "nowhere"), 3, "nowhere"),
        (("--logits", "--text", "short"), 2, "expected 1024 or more"),
    ],
)
def test_what_cannot_be_compared_is_said(
    capsys, files, tmp_path, monkeypatch, options, code, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("too short")
    found, _, err = told(capsys, files["f32"], files["q4k"], *options)
    assert found == code and words in err
