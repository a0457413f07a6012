"""`--backend NAME:DEVICE`: what a name means, and what a backend is called with."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from apr_core.declarations import Backend, Kernel
from apr_core.errors import BackendError, PluginConflict, PluginNotFound
from apr_core.model import model as models
from apr_core.model.loading import foreign_kernels, make_backend
from apr_core.ops.binding import ForeignKernel
from apr_core.plugin import BackendPlugin
from apr_core.registry import Registry

HERE = __name__


class Npu(BackendPlugin):
    """A backend with devices."""

    def __init__(self, threads=None, device="the first"):
        self.given = (threads, device)


class Any(BackendPlugin):
    """One that passes its options on."""

    def __init__(self, **options):
        self.given = options


class Abacus(BackendPlugin):
    """One that knows nothing of devices."""

    def __init__(self, threads=None):
        self.given = threads


def backend(name, target="Npu"):
    return Backend(name, f"{HERE}:{target}", summary="a backend")


def registry(**distributions):
    return Registry.from_declarations(distributions)


BOTH = registry(npus=[backend("npu"), backend("old", "Abacus"), backend("any", "Any")])


@pytest.mark.parametrize(
    ("name", "qualified", "device"),
    [
        ("npu", "npus:npu", None), ("npu:0", "npus:npu", "0"), ("npu:12", "npus:npu", "12"),
        ("npus:npu", "npus:npu", None), ("npus:npu:1", "npus:npu", "1"),
        ("NPUS:npu:1", "npus:npu", "1"),
    ],
)  # fmt: skip
def test_a_number_behind_the_name_is_a_device(name, qualified, device):
    owned, number = BOTH.backend(name)
    assert (owned.qualified, number) == (qualified, device)


def test_a_name_that_is_declared_means_itself_before_it_means_a_device():
    taken = registry(npu=[backend("1"), backend("npu")])
    assert taken.backend("npu:1")[0].declaration.name == "1"
    assert taken.backend("npu:1")[1] is None
    owned, device = taken.backend("npu:2")
    assert (owned.declaration.name, device) == ("npu", "2")
    assert taken.backend("npu:npu:1")[1] == "1"


@pytest.mark.parametrize("name", ["npu:", "npu:x", "npu:-1", "npu: 1", "npu:1.0", ":1", "gpu:1"])
def test_anything_else_names_no_backend(name):
    with pytest.raises(PluginNotFound):
        BOTH.backend(name)


def test_a_device_of_a_name_that_two_claim_is_a_question():
    both = registry(one=[backend("npu")], two=[backend("npu")])
    with pytest.raises(PluginConflict, match="one:npu, two:npu"):
        both.backend("npu:1")
    assert both.backend("two:npu:1")[0].distribution == "two"


def test_a_backend_gets_the_device_only_where_one_is_named():
    assert make_backend(BOTH, "npu", 2).given == (2, "the first")
    assert make_backend(BOTH, "npu:3", 2).given == (2, "3")
    assert make_backend(BOTH, "any:3", 2).given == {"threads": 2, "device": "3"}
    assert make_backend(BOTH, "any", 2).given == {"threads": 2}


@pytest.mark.parametrize(("name", "instead"), [("old:1", "old"), ("npus:old:0", "npus:old")])
def test_one_that_knows_no_devices_says_what_to_write_instead(name, instead):
    assert make_backend(BOTH, instead, 2).given == 2
    with pytest.raises(BackendError, match=f"there is no {name}") as refused:
        make_backend(BOTH, name, 2)
    assert refused.value.hint == f"Write {instead}." and refused.value.exit_code == 14


@pytest.mark.parametrize("name", ["npu", "npu:1", "npus:npu", "npus:npu:1"])
def test_kernels_of_others_are_found_however_the_backend_is_named(name, monkeypatch, tmp_path):
    """Those that bring a kernel know the backend by its bare name."""
    kernel = Kernel("npu/silu", "k:silu", backend="npu", op="silu")
    plugins = registry(npus=[backend("npu")], kernels=[kernel])
    asked = []

    family = SimpleNamespace(contract=lambda: None, plan=lambda config: None)
    config = SimpleNamespace(max_position_embeddings=8)
    file = SimpleNamespace(metadata={"apr.family": "toys"}, close=lambda: None)

    def build(file, contract, config, plan, known, device, backend_name, *more, **options):
        asked.append(foreign_kernels(known, backend_name))
        raise BackendError("far enough")

    monkeypatch.setattr(plugins, "make", lambda kind, name: family)
    monkeypatch.setattr(models, "family_config", lambda family, file: config)
    monkeypatch.setattr(models.AprFile, "open", classmethod(lambda cls, path: file))
    monkeypatch.setattr(models, "build_decoder", build)
    with pytest.raises(BackendError, match="far enough"):
        models.load(tmp_path / "model.apr", name, registry=plugins)
    assert asked == [{("silu", "*"): ForeignKernel("k:silu", "kernels")}]
