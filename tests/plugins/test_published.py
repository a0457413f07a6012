"""The index of what is published agrees with what the shipped plugins declare."""

from __future__ import annotations

import pytest

from apr_core.messages import index, published
from apr_core.registry import get_registry

SHIPPED = (
    "apr-backend-cpu", "apr-backend-cuda", "apr-demo", "apr-devkit", "apr-eval", "apr-gemma3",
    "apr-gguf", "apr-hub", "apr-llama", "apr-quant-q4k", "apr-qwen2", "apr-qwen3", "apr-qwen3-5",
    "apr-qwen3-5-moe",
    "apr-serve",
)  # fmt: skip


def declared(kind):
    rows = get_registry().declarations(kind)
    ours = [o for o in rows if o.distribution in SHIPPED]
    names = {o.declaration.full_name: o.distribution for o in ours}
    for owned in ours if kind == "source" else ():  # in messages they are schemes, or suffixes
        if owned.declaration.suffixes:
            del names[owned.declaration.name]
            names |= dict.fromkeys(owned.declaration.suffixes, owned.distribution)
    return names


@pytest.mark.needs_plugins
def test_every_shipped_name_is_in_the_index():
    for kind in index()["plugins"]:
        names = declared(kind)
        if kind == "family":
            for owned in get_registry().declarations(kind):
                if owned.distribution in SHIPPED:
                    known = (*owned.declaration.architectures, *owned.declaration.model_types)
                    names |= dict.fromkeys(known, owned.distribution)
        assert published(kind) == names, kind


@pytest.mark.needs_plugins
def test_formats_with_an_id_are_as_their_quantizers_declare_them():
    rows = {row["name"]: row for row in index()["formats"]}
    quantizers = [o.declaration for o in get_registry().declarations("quantizer")]
    fixed = {d.name: d for d in quantizers if d.dtype_id is not None}
    assert set(rows) == set(fixed)
    for name, row in rows.items():
        declaration = fixed[name]
        assert (row["id"], row["block"], row["bytes_per_block"]) == (
            declaration.dtype_id,
            declaration.block,
            declaration.bytes_per_block,
        )
