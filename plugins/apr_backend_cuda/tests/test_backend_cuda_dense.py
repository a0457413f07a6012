"""Products of many tokens decode the weight first, in slabs of rows: the kit's cases, that way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from apr_backend_cuda.kernels import dense, linear
from apr_backend_cuda.launching import shapes
from apr_devkit.kits import BackendConformance


class Kit(BackendConformance):
    backend = "cuda"


KIT = Kit()


def cases():
    products = [case for case in KIT.packed if case.op == "linear"]
    return products[::3]  # the tiles themselves are what other products are checked with


@pytest.mark.parametrize(("slab", "programs"), [(1 << 10, 1), (1 << 26, 1 << 10)])
def test_products_of_many_tokens_agree_with_the_references(monkeypatch, slab, programs):
    changed = replace(shapes.SHAPES, many=1, slab=slab, programs=programs)
    monkeypatch.setattr(linear, "SHAPES", changed)
    monkeypatch.setattr(dense, "SHAPES", changed)
    decoded = []
    decode = dense.multiply_many
    monkeypatch.setattr(linear, "multiply_many", lambda *a: decoded.append(a) or decode(*a))
    KIT.compare(cases(), KIT.runner)
    assert len(decoded) >= 20
    assert any(parts > 1 for _, _, parts, _ in decoded) == (programs > 1)
