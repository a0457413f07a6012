"""Planes hold what the file's blocks mean, whatever pieces they were repacked in."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="what the backend's arrays are")

import torch

from apr_backend_cuda.backend import Cuda
from apr_backend_cuda.weights.matrices import form_of, uploaded
from apr_backend_cuda.weights.upload import uploader
from apr_core.plugin import DENSE, BackendError
from apr_core.registry import get_registry
from apr_core.runtime import Binder
from apr_devkit.kits.cases import Matrix
from apr_devkit.kits.ops import LAYOUTS, UNKNOWN, Installed, in_floats, in_layout

CPU = torch.device("cpu")
FLOATS = {name: in_floats(name) for name in ("f16", "bf16")}
DECLARED = {name: in_layout(name) for name in LAYOUTS}
INSTALLED = {
    name: pack
    for name, pack in Installed.of(get_registry()).formats.items()
    if name not in (UNKNOWN, *FLOATS)
}
PACKS = FLOATS | INSTALLED | DECLARED
ROWS = 7


def packed(name, cols, seed=0):
    """A matrix as a file has it."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((ROWS, cols)).astype(np.float32)
    return PACKS[name](Matrix(values), name).host


def sent(host, piece):
    with uploader(CPU, piece) as sent_by:
        return uploaded(host, CPU, sent_by)


def codes_in_order(m):
    """Codes of a matrix [rows, K], with their upper bits."""
    codes = m.codes.numpy()
    if m.kind != "bytes":
        halves = codes.reshape(ROWS, -1, 128)
        codes = np.stack([halves & 15, halves >> 4], axis=2).reshape(ROWS, -1)
    codes = codes.astype(np.int32)
    if "upper" in m.extra:
        width = {"q5_k": 1, "fives": 1, "q6_k": 2}[m.kind]
        packed = m.extra["upper"].numpy().reshape(ROWS, -1, 1, 32 * width)
        upper = packed >> np.arange(0, 8, width, dtype=np.uint8)[:, None] & (1 << width) - 1
        codes += upper.reshape(ROWS, -1).astype(np.int32) << 4
    return codes


def scales_and_minima(m):
    """Of every group: f32 [rows, groups] each, or None for minima."""
    scales, minima = m.extra["scales"].numpy().astype(np.float32), m.extra.get("minima")
    minima = None if minima is None else minima.numpy().astype(np.float32)
    if "super" in m.extra:
        numbers = m.extra["super"].numpy().astype(np.float32)
        if minima is None:
            return scales * np.repeat(numbers, 16, axis=1), None
        scales = scales * np.repeat(numbers[:, 0::2], 8, axis=1)
        minima = -minima * np.repeat(numbers[:, 1::2], 8, axis=1)
    return scales, minima


def decoded(m):
    """What the planes of a matrix say, by their description and nothing else: f32 [rows, cols]."""
    if m.kind in FLOATS:
        return m.codes.to(torch.float32).numpy()
    codes = codes_in_order(m)
    levels = m.extra["codebook"].numpy()[codes] if m.kind == "codebook" else codes - m.zero
    scales, minima = scales_and_minima(m)
    width = codes.shape[1]
    values = levels * np.repeat(scales, m.group, axis=1)[:, :width]
    if minima is not None:
        values = values + np.repeat(minima, m.group, axis=1)[:, :width]
    return values[:, : m.cols].astype(np.float32)


@pytest.mark.parametrize("cols", [1024, 512, 300, 37])
@pytest.mark.parametrize("name", PACKS)
def test_planes_say_what_the_codec_decodes(name, cols):
    host = packed(name, cols)
    expected = host.dense()
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(decoded(sent(host, 1 << 20)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cols", [512, 37])
@pytest.mark.parametrize("name", PACKS)
def test_every_byte_of_a_plane_is_written(name, cols):
    """Kernels read whole superblocks: nothing may be left of what memory held before."""
    host = packed(name, cols)
    form = form_of(host.format, cols, host.layout)
    raw, contents = torch.from_numpy(host.raw.copy()), []
    for before in (0, 255):
        planes = form.empty(ROWS, CPU)
        for plane in planes.values():
            plane.view(torch.uint8).fill_(before)
        form.fill(raw, planes)
        contents.append({name: bits(plane) for name, plane in planes.items()})
    assert contents[0] == contents[1]


def bits(plane):
    return plane.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", PACKS)
def test_pieces_make_no_difference(name):
    host = packed(name, 1024)
    whole = sent(host, 1 << 20)
    for rows in (1, 2, 3):
        apart = sent(host, rows * host.raw.shape[1])
        assert apart.extra.keys() == whole.extra.keys()
        assert bits(apart.codes) == bits(whole.codes)
        for plane in whole.extra:
            assert bits(apart.extra[plane]) == bits(whole.extra[plane]), plane


@pytest.mark.parametrize("cols", [1024, 300])
@pytest.mark.parametrize("name", PACKS)
def test_a_matrix_takes_what_was_planned(name, cols):
    host = packed(name, cols)
    m = sent(host, 1 << 20)
    taken = [m.codes.nbytes, *(plane.nbytes for plane in m.extra.values())]
    planned = Cuda().matrix_bytes(host.format, host.shape, host.layout)
    assert planned == sum(-(-nbytes // 512) * 512 for nbytes in taken)


def test_a_dense_matrix_takes_four_bytes_a_value():
    assert Cuda().matrix_bytes("f32", (3, 128)) == 3 * 128 * 4
    assert Cuda().matrix_bytes("f32", (1, 1)) == 512


def test_a_format_that_nobody_described_is_decoded_before():
    for op in ("linear", "embed"):
        assert Binder(Cuda(), {}).kept_as("mystery", None, [op]) == DENSE
    with pytest.raises(BackendError, match="no kernel here reads weights in mystery"):
        form_of("mystery", 256, None)
