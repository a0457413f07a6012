"""Recipes give every class of tensor its format, and name only formats they declare."""

from __future__ import annotations

import subprocess
import sys

import pytest

from apr_core.family.modelspec import TensorClass
from apr_quant_q4k import hooks, recipes

CLASSES = ("matrix", "value", "down", "fused_input", "sensitive", "embedding", "head")
EXPECTED = {
    "q4k": "q4_k q4_k q4_k q4_k q6_k q4_k q6_k",
    "q6k": "q6_k q6_k q6_k q6_k q8_0 q6_k q6_k",
    "q8_0": " ".join(["q8_0"] * 7),
    "f16": " ".join(["f16"] * 7),
    "bf16": " ".join(["bf16"] * 7),
    "f32": " ".join(["f32"] * 7),
    "q4_k_m": "q4_k q4_k q4_k q5_k q5_k q4_k q6_k",  # in a layer without more bits
}


def chosen(recipe, quant_class, layer=3, layers=24):
    tensor = TensorClass("t", "r", quant_class, (8, 256), layer, layers)
    return getattr(recipes, recipe)().format_for(tensor)


@pytest.mark.parametrize("recipe", EXPECTED)
def test_format_of_each_class(recipe):
    assert [chosen(recipe, c) for c in CLASSES] == EXPECTED[recipe].split()


@pytest.mark.parametrize("recipe", EXPECTED)
def test_outside_the_layers(recipe):
    formats = chosen(recipe, "head", layer=None), chosen(recipe, "sensitive", layer=None)
    assert formats == (chosen(recipe, "head"), chosen(recipe, "sensitive"))


@pytest.mark.parametrize("quant_class", ["value", "down"])
def test_layers_that_get_more_bits(quant_class):
    more = [n for n in range(24) if chosen("q4_k_m", quant_class, n) == "q6_k"]
    assert more == [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]
    few = [n for n in range(4) if chosen("q4_k_m", quant_class, n, 4) == "q6_k"]
    assert few == [2, 3]
    many = [n for n in range(36) if chosen("q4_k_m", quant_class, n, 36) == "q6_k"]
    assert many == [*range(4), 6, 9, 12, 15, 18, 21, 24, 27, 30, *range(31, 36)]


def test_declarations_agree_with_the_codecs_and_recipes(golden):
    for declared in hooks.apr_quantizers():
        codec = golden.CODECS[declared.name]
        assert (declared.block, declared.bytes_per_block) == (codec.block, codec.nbytes)
    ids = {d.name: d.dtype_id for d in hooks.apr_quantizers()}
    assert {name: id_ for name, id_ in ids.items() if id_} == {"q4_k": 12, "q6_k": 14}
    assert {d.name for d in hooks.apr_recipes()} == set(EXPECTED)
    for declared in hooks.apr_recipes():
        layers = [(c, n) for c in CLASSES for n in range(24)]
        used = {chosen(declared.name, c, n) for c, n in layers} & set(ids)
        assert used == set(declared.formats)


def test_hooks_import_no_arrays():
    code = "import sys, apr_quant_q4k.hooks; print({'numpy', 'numba'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_codecs_import_their_compiler_when_they_are_used():
    """Not before: a model whose formats the backend reads is run without any of them."""
    code = (
        "import sys, numpy as np; from apr_quant_q4k import codecs\n"
        "quantizers = [codecs.Q4K(), codecs.Q5K(), codecs.Q6K(), codecs.Q8_0()]\n"
        "def compilers(): print(*sorted({'numba', 'llvmlite'} & set(sys.modules)))\n"
        "compilers(); quantizers[3].decode(np.zeros((1, 34), np.uint8), 32); compilers()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["", "llvmlite numba"]
