"""Decode steps that a backend repeats: those of all families, and what stands in the way."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("apr_qwen2", reason="the family that is changed here")

from apr_core import load
from apr_core.cli import run
from apr_core.ops import CORE_OPS
from apr_core.plugin import Attention, Backend, BackendError, Family, Kernel, composite, op
from apr_core.registry import Registry, get_registry
from apr_core.runtime import ReferenceBackend
from apr_devkit.tiny import tiny_apr
from apr_qwen2.mixers import FullAttention

pytestmark = pytest.mark.needs_plugins

HERE = sys.modules[__name__]
OPS = ("linears", "linear", "rope", "attention")
RECIPES = ("f32", "bf16", "q4k", "q4_k_m", "q6k", "q8_0")
# not those of examples, whose ops may have no kernel: a strict load refuses these, and says so
PLUGINS = Path(__file__).parents[2] / "plugins"
SHIPPED = [
    owned
    for owned in get_registry().declarations("family")
    if (PLUGINS / owned.distribution.replace("-", "_")).is_dir()
]
SAID = "steps are not recorded: "
for entry in CORE_OPS.values():
    if not entry.is_composite:
        setattr(HERE, f"run_{entry.name}", partial(entry.body, np))


class Recorder(ReferenceBackend):
    """Has a kernel for every op of the core that is no composite. Keeps what it is asked for."""

    name = "recorder"
    kernels = {
        (e.name, "*"): f"{__name__}:run_{e.name}" for e in CORE_OPS.values() if not e.is_composite
    }
    captured, uploads = 0, 0

    def capture(self, step, note):
        type(self).captured += 1
        self.note = note
        return step

    def upload(self, array):
        type(self).uploads += 1
        return super().upload(array)

    upload_matrix = upload


class Graphs(Recorder):
    captures_arithmetic = True


class Slow(Recorder):
    kernels = {k: v for k, v in Recorder.kernels.items() if k != ("rope", "*")}


class Dense(Recorder):
    """Reads no packed weights."""

    kernels = Recorder.kernels | {("linear", "f32"): f"{__name__}:run_linear"}
    del kernels["linear", "*"]


@op
def halved(xp, x):
    return x * 0.5


@composite
def halved_in_place(o, x):
    return x * 0.5


def foreign_rope(*call):
    return CORE_OPS["rope"](np, *call)


class Biased(FullAttention):
    """As somebody writes it who has not heard of `linears` with biases."""

    def __call__(self, o, w, x, step, state):
        q, k, v = o.linears(x, (w.q_proj, w.k_proj, w.v_proj))
        q, k, v = q + w.q_bias, k + w.k_bias, v + w.v_bias  # here
        q, k, v = (y.reshape(len(x), -1, self.head_dim) for y in (q, k, v))
        q, k = (o.rope(y, step.positions, w.inv_freq) for y in (q, k))
        return o.linear(o.attention(q, k, v, state, step, 0.1).reshape(len(x), -1), w.o_proj)


LINE = Biased.__call__.__code__.co_firstlineno + 2


def doing(what, *ops):
    """Full attention that does something with its input first."""

    class Doing(FullAttention):
        def __call__(self, o, w, x, step, state):
            return super().__call__(o, w, what(o, x, step), step, state)

    Doing.ops = ops
    return Doing


def registry_of(mixer, backend=Recorder, *more):
    HERE.Mixer, HERE.Device = mixer, backend
    brings = tuple((name, f"{__name__}:{name}") for name in getattr(mixer, "ops", ()))
    mine = [
        Family("qwen2", "apr_qwen2.family:Qwen2", architectures=("Qwen2ForCausalLM",),
               model_types=("qwen2",)),
        Attention("full_attention", f"{__name__}:Mixer", brings=brings),
    ]  # fmt: skip
    device = Backend("recorder", f"{__name__}:Device", summary="records steps")
    backend.captured = backend.uploads = 0
    declared = {"apr-mine": mine, "apr-recorder": [device], "apr-more": more}
    quantizers = [o.declaration for o in get_registry().declarations("quantizer")]
    return Registry.from_declarations(declared | {"apr-formats": quantizers})


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_apr("qwen2", tmp_path_factory.mktemp("recorded"))


def obstacles(file, *args):
    """What the report says of a model; it is captured if that is nothing."""
    registry = registry_of(*args)
    with load(file, "recorder", registry=registry) as model:
        lines = [line for line in model.report.fallbacks if line.startswith(SAID)]
        assert [f"! {line}" for line in lines] == [
            line for line in model.report.lines() if SAID in line
        ]
        assert HERE.Device.captured == (not lines)
        assert np.isfinite(model.logits([1, 2, 3])).all()
    return [line.removeprefix(SAID) for line in lines]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("owned", SHIPPED, ids=lambda o: o.qualified)
def test_steps_of_every_shipped_family_are_recorded(tmp_path, monkeypatch, owned, recipe):
    pytest.importorskip("apr_backend_cpu", reason="the backend that repeats steps")
    pytest.importorskip("apr_quant_q4k", reason="the recipes")
    path, calls = tiny_apr(owned.declaration.name, tmp_path, recipe), []
    with load(path, "cpu", strict=True) as model:
        for mixer in {type(layer.mixer) for layer in model._decoder.layers}:

            def counted(self, *args, original=mixer.__call__):
                calls.append(self)
                return original(self, *args)

            monkeypatch.setattr(mixer, "__call__", counted)
        slots = [model.new_slot() for _ in range(2)]
        model.forward([(slot, [1, 2, 3]) for slot in slots])
        for some in (slots[:1], slots):
            calls.clear()
            for token in range(3):
                model.forward([(slot, [token]) for slot in some])
            assert len(calls) == model.config.num_layers, "of three steps, one runs in Python"
        assert model.report.fallbacks == []


def test_what_is_only_ops_and_views_is_recorded(file):
    assert obstacles(file, FullAttention) == []


def test_arithmetic_is_named_with_its_plugin_and_line_and_refused_before_any_upload(
    file, monkeypatch, capsys
):
    line = f"arithmetic outside ops in Biased (apr-mine, test_recording.py:{LINE})"
    assert obstacles(file, Biased) == [line]
    registry = registry_of(Biased)
    with pytest.raises(BackendError, match=re.escape(line)):
        load(file, "recorder", registry=registry, strict=True)
    assert Recorder.uploads == 0
    monkeypatch.setattr("apr_core.model.model.get_registry", lambda: registry)
    assert run(["run", str(file), "hello", "--backend", "recorder", "--strict"]) == 14
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda o, x, step: x * np.float32(0.5), "arithmetic outside ops in <lambda>"),
        (lambda o, x, step: np.concatenate([x, x])[: len(x)], "arithmetic outside ops"),
        (lambda o, x, step: x[list(range(len(x)))], "arithmetic outside ops"),
        (lambda o, x, step: x.T.reshape(-1).reshape(x.T.shape).T, "arithmetic outside ops"),
        (lambda o, x, step: x if (step.positions * 2).size else None, "arithmetic outside ops"),
    ],
    ids=["arithmetic", "numpy", "indices", "a copy", "positions"],
)
def test_arithmetic_matters_unless_the_backend_captures_it(file, what, words):
    lines = obstacles(file, doing(what))
    assert lines and all(line.startswith(words) for line in lines)
    assert obstacles(file, doing(what), Graphs) == []


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (
            lambda o, x, step: x if float(x[0, 0]) is not None else None,
            "values are read on the host",
        ),
        (
            lambda o, x, step: x if bool((x > 0).any()) in (True, False) else None,
            "values are read on the host",
        ),
        (lambda o, x, step: x if step.segments else None, "step.segments is read on the host"),
    ],
    ids=["a number", "a condition", "the step"],
)
def test_what_is_read_on_the_host_always_matters(file, what, words):
    (line,) = obstacles(file, doing(what), Graphs)
    assert line.startswith(words) and line.endswith(")")


def test_code_that_runs_on_other_arrays_only_is_said_to(file):
    def strange(o, x, step):
        if hasattr(x, "trial"):
            raise TypeError("not these arrays")
        return x

    assert obstacles(file, doing(strange)) == [
        "a step on zeros ends with TypeError: not these arrays"
    ]


def test_a_composite_is_looked_into_unless_the_backend_has_a_kernel(file):
    mixer = doing(lambda o, x, step: o.halved_in_place(x), "halved_in_place")
    (line,) = obstacles(file, mixer)
    assert line.startswith(
        "arithmetic outside ops in halved_in_place (apr-mine, test_recording.py:"
    )

    class Fused(Recorder):
        kernels = Recorder.kernels | {("halved_in_place", "*"): f"{__name__}:halve"}

    assert obstacles(file, mixer, Fused) == []


def halve(x):
    return x * 0.5


def test_ops_that_are_not_the_backends_own_are_named_with_their_plugin(file):
    mixer = doing(lambda o, x, step: o.halved(x), "halved")
    place = f"test_recording.py:{halved.body.__code__.co_firstlineno}"
    assert obstacles(file, mixer) == [f"halved runs on the reference (apr-mine, {place})"]
    (line,) = obstacles(file, FullAttention, Slow)
    assert re.fullmatch(r"rope runs on the reference \(apr-core, reference.py:\d+\)", line)
    kernel = Kernel("rope", f"{__name__}:foreign_rope", backend="recorder", op="rope")
    (line,) = obstacles(file, FullAttention, Recorder, kernel)
    assert line.startswith("rope runs on a foreign kernel (apr-more, test_recording.py:")


def test_weights_that_have_to_be_decoded_are_refused_before_any_upload(tmp_path):
    pytest.importorskip("apr_quant_q4k", reason="a format")
    packed = tiny_apr("qwen2", tmp_path, "q8_0")
    registry = registry_of(FullAttention, Dense)
    with pytest.raises(BackendError, match="q8_0 weights are decoded: 1 MiB instead of 0"):
        load(packed, "recorder", registry=registry, strict=True)
    assert Dense.uploads == 0


def test_what_a_backend_finds_out_later_is_in_the_report_once(file):
    with load(file, "recorder", registry=registry_of(FullAttention)) as model:
        for _ in range(2):
            model.backend.note("values are needed in rope (elementwise.py:1)")
        assert model.report.fallbacks == [f"{SAID}values are needed in rope (elementwise.py:1)"]
