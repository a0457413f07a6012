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
ODD = EXPECTED | {  # for rows that blocks of 256 do not divide
    "q4k": "q5_0 q5_0 q5_0 q5_0 q8_0 q5_0 q5_0",
    "q6k": " ".join(["q8_0"] * 7),
    "q4_k_m": "q5_0 q5_0 q5_0 q5_1 q5_1 q5_0 q5_0",
}


def answer(recipe, quant_class, layer=3, layers=24):
    tensor = TensorClass("t", "r", quant_class, (8, 256), layer, layers)
    return getattr(recipes, recipe)().format_for(tensor)


def chosen(*arguments, **place):
    return answer(*arguments, **place)[0]


@pytest.mark.parametrize("recipe", EXPECTED)
def test_format_of_each_class(recipe):
    assert [chosen(recipe, c) for c in CLASSES] == EXPECTED[recipe].split()
    assert [answer(recipe, c)[-1] for c in CLASSES] == ODD[recipe].split()


BITS = {d.name: (d.block, 8 * d.bytes_per_block / d.block) for d in hooks.apr_quantizers()}
LAYER = {  # of SmolLM2-135M: class -> shapes
    "matrix": [(576, 576), (192, 576), (576, 576), (1536, 576), (1536, 576)],
    "value": [(192, 576)],
    "down": [(576, 1536)],
}


@pytest.mark.parametrize("recipe", ["q4k", "q4_k_m"])
def test_a_small_model_takes_few_bits(recipe):
    """Rows of 576 values padded to three blocks of 256 would take 6.5."""
    tensors = [("head", None, (49152, 576))]
    tensors += [(c, n, s) for n in range(30) for c, shapes in LAYER.items() for s in shapes]
    bits = weights = 0
    for quant_class, layer, (rows, cols) in tensors:
        formats = [BITS[name] for name in answer(recipe, quant_class, layer, 30)]
        taken = next(each for block, each in formats if cols % block == 0)
        bits, weights = bits + rows * cols * taken, weights + rows * cols
    assert 5 < bits / weights < 5.6


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
        used = {name for c, n in layers for name in answer(declared.name, c, n)} & set(ids)
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
