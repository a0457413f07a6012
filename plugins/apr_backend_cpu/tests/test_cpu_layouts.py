"""Blocks of declared layouts through the generic kernel, against what a layout means."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from apr_backend_cpu.backend import Cpu
from apr_backend_cpu.ops import linear
from apr_core.declarations import Layout, Numbers
from apr_core.errors import PluginError
from apr_core.ops.binding import BlockLayout
from apr_core.ops.layouts import decode

NF4 = (
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip
LAYOUTS = {  # name -> (layout, block, bytes)
    "q4_0": (Layout(32, 2, 4, (Numbers(0, "f16"),), order="halves", zero=8), 32, 18),
    "q4_1": (
        Layout(32, 4, 4, (Numbers(0, "f16"),), (Numbers(2, "f16"),), order="halves"), 32, 20,
    ),
    "q5_0": (Layout(32, 6, 4, (Numbers(0, "f16"),), order="halves", zero=16, high=2), 32, 22),
    "five_far": (  # their fifth bits after their codes, at another distance in each run
        Layout(64, 4, 4, (Numbers(0, "f16"),), (Numbers(164, "f32", True),), order="halves",
               zero=-110, high=132), 256, 168,
    ),
    "nf4": (
        Layout(64, 12, 4, (Numbers(0, "u8"), Numbers(8, "f32", True)), codebook=NF4), 256, 140,
    ),
    "int8": (Layout(128, 4, 8, (Numbers(0, "bf16"),), signed=True), 128, 132),
    "uint8": (Layout(32, 8, 8, (Numbers(0, "f16"),), (Numbers(2, "f16"),), zero=100), 64, 72),
    "wide": (Layout(64, 32, 4, (Numbers(0, "f16"),)), 1024, 544),
    "across": (Layout(64, 4, 4, (Numbers(0, "i8"), Numbers(100, "f32", True)), zero=3), 192, 104),
    "q4_k_like": (
        Layout(
            32, 16, 4, (Numbers(0, "u8"), Numbers(144, "f16", True)),
            (Numbers(8, "i8"), Numbers(146, "bf16", True)), order="halves",
        ), 256, 148,
    ),
    "products": (
        Layout(128, 8, 8, (Numbers(0, "f16"), Numbers(4, "u8")), (Numbers(264, "f32", True),)),
        256, 268,
    ),
    "far": (Layout(32, 2, 4, (Numbers(0, "f16"),), zero=-120), 32, 18),
}  # fmt: skip


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def weight(rng, name, rows, cols):
    """(a bound weight, its decoded values) of random blocks with sane scales."""
    layout, block, nbytes = LAYOUTS[name]
    blocks = -(-cols // block)
    raw = rng.integers(0, 256, (rows, blocks, nbytes), dtype=np.uint8)
    for part in (*layout.scale, *layout.minimum):
        count = 1 if part.per_block else block // layout.group
        numbers = rng.uniform(0.01, 0.02, (rows, blocks, count)).astype(np.float32)
        if part.dtype == "f16":
            stored = numbers.astype(np.float16).view(np.uint8)
        elif part.dtype == "bf16":
            stored = (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        elif part.dtype == "f32":
            stored = numbers.view(np.uint8)
        else:
            continue
        raw[:, :, part.offset : part.offset + stored.shape[-1]] = stored
    raw = raw.reshape(rows, -1)
    spec = BlockLayout(layout, block, nbytes)
    matrix = SimpleNamespace(raw=raw, format=name, shape=(rows, cols), layout=spec)
    data = Cpu(2).upload_packed(matrix)
    bound_weight = SimpleNamespace(
        name=name,
        format=name,
        rows=rows,
        cols=cols,
        data=data,
        prepared=None,
        layout=spec,
        linear=linear.linear,
        row_bytes=raw.shape[1],
        decode=lambda raw, cols: decode(layout, block, nbytes, raw, cols),
    )
    return bound_weight, decode(layout, block, nbytes, raw, cols)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("rows", "cols"), [(16, 1024), (37, 512), (5, 320)])
def test_products_follow_the_layout(rng, name, rows, cols):
    w, values = weight(rng, name, rows, cols)
    x = rng.standard_normal((11, cols)).astype(np.float32)
    got, expected = linear.linear(x, w), x @ values.T
    noise = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert noise < 0.012  # activations of 8 bits; a codebook's levels too


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("rows", "cols"), [(67, 512), (16, 1120), (67, 320)])
def test_a_row_gives_the_same_bits_in_any_batch(rng, name, rows, cols):
    w, _ = weight(rng, name, rows, cols)
    x = rng.standard_normal((27, cols)).astype(np.float32)
    alone = np.concatenate([linear.linear(x[i : i + 1], w) for i in range(27)])
    for batch in (2, 3, 4, 5, 8, 9, 16, 17, 27):
        np.testing.assert_array_equal(linear.linear(x[:batch], w), alone[:batch], str(batch))


@pytest.mark.parametrize("threads", [1, 2])
def test_every_tile_of_a_weight_of_many_tasks_meets_its_own_numbers(rng, threads):
    """So large that threads begin in the middle of it, at a tile's own numbers."""
    w, values = weight(rng, "nf4", 2000, 1024)
    Cpu(threads)
    x = rng.standard_normal((1, 1024)).astype(np.float32)
    got = linear.linear(x, w)
    assert np.linalg.norm(got - x @ values.T) < 0.012 * np.linalg.norm(got)


def test_an_embedding_decodes_the_rows_that_are_asked_for(rng):
    w, values = weight(rng, "nf4", 5000, 320)
    decoded = []
    layout, block, nbytes = LAYOUTS["nf4"]

    def count(raw, cols):
        decoded.append(len(raw))
        return decode(layout, block, nbytes, raw, cols)

    w.decode = count
    np.testing.assert_array_equal(linear.embed(np.array([7, 4999, 7]), w), values[[7, 4999, 7]])
    assert decoded == [3]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_not_hidden(rng, bad):
    w, _ = weight(rng, "q4_1", 16, 512)
    x = rng.standard_normal((3, 512)).astype(np.float32)
    x[1, 300] = bad
    for row, finite in enumerate((True, False, True)):
        for got in (linear.linear(x, w)[row], linear.linear(x[row : row + 1], w)[0]):
            assert np.isfinite(got).all() if finite else np.isnan(got).all()


def test_integer_levels_are_exact(rng):
    w, values = weight(rng, "q4_1", 32, 256)
    x = np.zeros((1, 256), np.float32)
    x[0, ::32] = 127.0  # rounded without error
    np.testing.assert_allclose(linear.linear(x, w), x @ values.T, rtol=2e-5, atol=1e-5)


def test_layouts_share_an_input_with_other_formats(rng):
    ws = tuple(weight(rng, name, 33, 512)[0] for name in ("nf4", "q4_0", "int8"))
    x = rng.standard_normal((6, 512)).astype(np.float32)
    for got, w in zip(linear.linears(x, ws), ws, strict=True):
        np.testing.assert_array_equal(got, linear.linear(x, w))


def test_what_a_layout_means_is_known_for_q4_0():
    raw = np.zeros((1, 18), np.uint8)
    raw[0, :2] = np.array([0.5], np.float16).view(np.uint8)
    raw[0, 2:] = np.arange(16) + 16 * (15 - np.arange(16))
    values = decode(*LAYOUTS["q4_0"], raw, 32)
    expected = 0.5 * (np.concatenate([np.arange(16), 15 - np.arange(16)]) - 8)
    np.testing.assert_array_equal(values[0], expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group": 48}, "group 48"),
        ({"codes": 100}, "exceed 140"),
        ({"scale": ()}, "no scale"),
        ({"scale": (Numbers(139, "f32", True),)}, "exceeds the block"),
        ({"codebook": (1.0,)}, "16 levels"),
        ({"high": 0}, "no codebook"),
        ({"high": 125, "codebook": (), "order": "halves"}, "fifth bits at 125"),
    ],
)
def test_impossible_layouts_are_refused(change, words):
    import dataclasses

    layout = dataclasses.replace(LAYOUTS["nf4"][0], **change)
    with pytest.raises(PluginError, match=words):
        layout.check(256, 140)
