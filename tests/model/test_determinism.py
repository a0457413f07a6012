"""A request gives the same bits alone, batched, chunked on the 64 grid, on any thread count."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="makes the random checkpoints")

from apr_core import load
from apr_core.errors import BackendError
from apr_core.registry import get_registry
from apr_devkit.tiny import tiny_apr
from tests import hf_models, tiny_checkpoints

pytestmark = pytest.mark.needs_plugins

STEPS = 24


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    out = tmp_path_factory.mktemp("determinism")
    case = hf_models.Case("qwen3_5", "published", 2, True)
    hf_models.save(hf_models.build(case), case, out / "checkpoint")
    return out


@pytest.fixture(scope="module", params=["f32", "q4k", "q6k", "q8_0", "bf16", "q4_k_m experts"])
def apr_file(request, directory):
    recipe, _, experts = request.param.partition(" ")
    checkpoint, target = directory / "checkpoint", directory / f"{recipe}.apr"
    if experts:
        case, checkpoint = hf_models.Case("qwen3_5_moe"), directory / experts
        hf_models.save(hf_models.build(case), case, checkpoint)
    subprocess.run(
        [sys.executable, "-m", "apr_core.cli", "import", checkpoint, "--quantize", recipe,
         "-o", target],
        check=True, capture_output=True,
    )  # fmt: skip
    return target


def prompts():
    rng = np.random.default_rng(11)
    return [rng.integers(0, hf_models.VOCAB, n).tolist() for n in (1, 37, 64, 130, 321)]


def greedy(model, slots, ids, chunk):
    """Prefill each prompt in chunks, then decode all slots in one batch a step."""
    logits = []
    for slot, prompt in zip(slots, ids, strict=True):
        for i in range(0, len(prompt), chunk):
            last = model.forward([(slot, prompt[i : i + chunk])])
        logits.append(last[0])
    tokens, trace = [[] for _ in slots], [[row] for row in logits]
    for _ in range(STEPS):
        chosen = [int(rows[-1].argmax()) for rows in trace]
        for out, token in zip(tokens, chosen, strict=True):
            out.append(token)
        step = model.forward([(s, [t]) for s, t in zip(slots, chosen, strict=True)])
        for rows, row in zip(trace, step, strict=True):
            rows.append(row)
    return tokens, [np.stack(rows) for rows in trace]


def run(model, ids, chunk=1024):
    slots = [model.new_slot() for _ in ids]
    result = greedy(model, slots, ids, chunk)
    for slot in slots:
        model.free_slot(slot)
    return result


def test_same_bits_alone_batched_chunked_and_threaded(apr_file):
    with load(apr_file, threads=2) as model:
        alone = [run(model, [p]) for p in prompts()]
        batched = run(model, prompts())
        for i, (tokens, logits) in enumerate(alone):
            assert batched[0][i] == tokens[0]
            np.testing.assert_array_equal(batched[1][i], logits[0])
        for chunk in (64, 128, 192, 256):
            tokens, logits = run(model, prompts()[-1:], chunk)
            assert tokens == alone[-1][0]
            np.testing.assert_array_equal(logits[0], alone[-1][1][0])
    with load(apr_file, threads=1) as model:
        tokens, logits = run(model, prompts())
        assert tokens == batched[0]
        for ours, theirs in zip(logits, batched[1], strict=True):
            np.testing.assert_array_equal(ours, theirs)


MISTRAL = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 40,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "kv_type", "changes"),
    [("gemma3", "q8", {}), ("llama", "f16", MISTRAL), ("qwen3", "f32", {}), ("llama", "q8", {})],
)
def test_other_families_give_the_same_bits_too(family, kv_type, changes, tmp_path):
    """Beyond windows, and beyond where rows that a window has left begin to go."""
    config = get_registry().make("family", family).tiny_config() | changes
    path = tiny_apr(family, tmp_path, "q8_0", config=config | {"max_position_embeddings": 1024})
    rng = np.random.default_rng(5)
    ids = [rng.integers(0, config["vocab_size"], n).tolist() for n in (3, 70, 600)]
    with load(path, threads=2, kv_type=kv_type) as model:
        tokens, logits = run(model, ids)
        for i, prompt in enumerate(ids):
            alone = run(model, [prompt], chunk=64)
            assert alone[0][0] == tokens[i]
            np.testing.assert_array_equal(alone[1][0], logits[i])
        slot, other = model.new_slot(), model.new_slot()
        model.forward([(slot, ids[2])])
        model.restore(other, model.snapshot(slot))
        model.captures = False
        for n, token in enumerate(tokens[2]):
            np.testing.assert_array_equal(model.forward([(other, [token])])[0], logits[2][n + 1])


def test_a_step_gives_the_same_bits_captured_or_not(apr_file):
    """A backend may remember what a step did, and do it again without calling its ops."""
    with load(apr_file, threads=1) as model:
        captured = run(model, prompts())
        model.captures = False
        called = run(model, prompts())
    assert captured[0] == called[0]
    for ours, theirs in zip(captured[1], called[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_same_bits_with_keys_and_values_of_8_bits(apr_file):
    with load(apr_file, threads=1, kv_type="q8") as model:
        alone = [run(model, [p]) for p in prompts()]
        batched = run(model, prompts())
        chunked = run(model, prompts()[-1:], 64)
        half = model.state_bytes()
    for i, (tokens, logits) in enumerate(alone):
        assert batched[0][i] == tokens[0]
        np.testing.assert_array_equal(batched[1][i], logits[0])
    np.testing.assert_array_equal(chunked[1][0], alone[-1][1][0])
    with load(apr_file, threads=1, kv_type="f16") as model:
        exact = run(model, prompts()[-1:])
    assert half == 0 == model.state_bytes(), "slots were freed"
    first = [logits[0][0] for _, logits in (alone[-1], exact)]  # before tokens may part ways
    assert relative_rmse(*first) < 0.02


def test_a_precision_of_keys_and_values_that_is_not_there_is_refused(apr_file):
    from apr_backend_cpu.backend import Cpu

    class Older(Cpu):
        kv_types = ("f32", "f16")

    with pytest.raises(BackendError, match=r"keeps keys and values in f32, f16, not q8"):
        load(apr_file, kv_type="q8", registry=with_backend(Older))
    with load(apr_file, kv_type="f16", registry=with_backend(Older)) as model:
        assert model.kv_type == "f16"


def test_heads_that_8_bits_cannot_hold_are_refused(tmp_path):
    source = tiny_checkpoints.write(tmp_path / "checkpoint", head_dim=48)
    target = tmp_path / "model.apr"
    subprocess.run(
        [sys.executable, "-m", "apr_core.cli", "import", source, "--quantize", "f16", "-o", target],
        check=True,
        capture_output=True,
    )
    with pytest.raises(BackendError, match="multiple of 32 values, found 48"):
        load(target, kv_type="q8")


def test_mixed_step_of_prefill_and_decode_changes_nothing(apr_file):
    with load(apr_file, threads=1) as model:
        long, short = prompts()[-1], prompts()[1]
        a, b = model.new_slot(), model.new_slot()
        model.forward([(a, short)])
        alone_first = model.forward([(a, [5])])
        model.free_slot(a)
        a = model.new_slot()
        model.forward([(a, short)])
        mixed = model.forward([(a, [5]), (b, long)])
        np.testing.assert_array_equal(mixed[0], alone_first[0])
        c = model.new_slot()
        np.testing.assert_array_equal(mixed[1], model.forward([(c, long)])[0])
        for slot in (a, b, c):
            model.free_slot(slot)


@pytest.mark.parametrize("recipe", ["q4k", "q6k", "q8_0", "q4_k_m"])
def test_packed_logits_equal_decoded_ones_within_int8_activations(directory, recipe, tmp_path):
    """The same weights, read packed with int8 activations and decoded to float32."""
    target = tmp_path / "packed.apr"
    subprocess.run(
        [sys.executable, "-m", "apr_core.cli", "import", directory / "checkpoint",
         "--quantize", recipe, "-o", target],
        check=True, capture_output=True,
    )  # fmt: skip
    with load(target, kv_type="f32") as model:
        packed = single_tokens(model)
    with load(target, kv_type="f32", registry=with_backend(float_kernels("linear_f32"))) as model:
        assert any("decoded" in line for line in model.report.fallbacks)
        exact = single_tokens(model)
    with load(target, kv_type="f32", registry=with_backend(float_kernels("linear_int8"))) as model:
        rounded = single_tokens(model)
    assert relative_rmse(packed, exact) < 0.05
    assert relative_rmse(rounded, exact) > 0.005
    # The rounding of activations is what differs, and nothing else: most tokens agree to float32.
    # In the others some sum fell on the other side of a rounding step and moved one code.
    errors = np.sqrt(np.mean((packed - rounded) ** 2, axis=1)) / exact.std()
    assert np.quantile(errors, 0.25) < 1e-5
    assert relative_rmse(packed, rounded) < relative_rmse(packed, exact)


def single_tokens(model):
    """Logits of 64 sequences of one token each."""
    slots = [model.new_slot() for _ in range(64)]
    logits = model.forward([(slot, [31 * slot + 7]) for slot in slots])
    for slot in slots:
        model.free_slot(slot)
    return logits


def relative_rmse(actual, expected):
    return float(np.sqrt(np.mean((actual - expected) ** 2)) / expected.std())


def linear_f32(x, w):
    from apr_backend_cpu.ops.linear import linear

    return linear(x, w)


def linear_int8(x, w):
    """A float product of activations rounded as packed kernels round them.

    int8 codes; 32 values share a scale that is 1 to 32 times what 256 values share, or 1 to 8
    times where the sums of 32 would not fit.
    """
    from apr_backend_cpu.ops.linear import linear

    blocks = np.pad(x, ((0, 0), (0, -x.shape[1] % 256))).reshape(x.shape[0], -1, 8, 32)
    fine, fits = rounded(blocks, 32)
    coarse, _ = rounded(blocks, 8)
    values = np.where(fits, fine, coarse).reshape(x.shape[0], -1)
    return linear(np.ascontiguousarray(values[:, : x.shape[1]], np.float32), w)


def rounded(blocks, most):
    """Blocks [T, superblocks, 8, 32] as int8 with sub-scales up to `most`; whether sums fit."""
    tops = np.abs(blocks).max(-1, keepdims=True)
    unit = tops.max(-2, keepdims=True) / np.float32(127 * most)
    steps = np.clip(np.ceil(tops / np.where(unit > 0, unit * np.float32(127), 1)), 1, most)
    scale = (unit * steps).astype(np.float32)
    codes = np.rint(np.clip(blocks / np.where(scale > 0, scale, 1), -127, 127))
    sums = (steps * codes).sum(-1)
    fits = (np.abs(sums).max(-1) < 2**15) & ((steps * np.abs(codes)).sum((-2, -1)) < 2**19)
    return codes * scale, fits[..., None, None]


def float_kernels(linear):
    """A CPU backend that reads no packed format: such weights are decoded to f32."""
    from apr_backend_cpu.backend import KERNELS, Cpu

    packed = ("q4_k", "q5_k", "q6_k", "q8_0", "layout")
    table = {key: target for key, target in KERNELS.items() if key[1] not in packed}
    table["linear", "f32"] = f"{__name__}:{linear}"

    class FloatsOnly(Cpu):
        kernels = table

    return FloatsOnly


def with_backend(backend):
    """The installed plugins, with another backend in the place of theirs."""

    class Patched:
        def __init__(self, registry):
            self._registry = registry

        def load(self, owned):
            if owned.declaration.kind == "backend":
                return backend
            return self._registry.load(owned)

        def __getattr__(self, name):
            return getattr(self._registry, name)

    return Patched(get_registry())
