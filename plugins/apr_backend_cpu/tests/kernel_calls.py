"""Compiled kernels called by name on memory of NumPy arrays, and weights to call them with."""

from __future__ import annotations

import ctypes
from functools import cache
from types import SimpleNamespace

import numpy as np

from apr_backend_cpu import native
from apr_backend_cpu.backend import Cpu
from apr_backend_cpu.constants import RECORD, SUPERBLOCK
from apr_backend_cpu.ops import linear
from apr_backend_cpu.ops.formats import PACKED_BLOCKS
from apr_backend_cpu.run.arrays import address
from apr_backend_cpu.run.program import instructions

SCALES_AT = {"q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "q8_0": (0,)}  # of a block


@cache
def _function(name, kinds):
    return ctypes.CFUNCTYPE(None, *kinds)(native.address(name))


def call(name, *arguments):
    """Call an exported kernel: arrays are addresses, floats float32, other numbers words."""
    kinds, values = [], []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            argument = address(argument)
        is_float = isinstance(argument, float | np.floating)
        kinds.append(ctypes.c_float if is_float else ctypes.c_uint64)
        values.append(float(argument) if is_float else int(argument))
    _function(name, tuple(kinds))(*values)


def run_tasks(name, tasks, *arguments, scratch=0):
    """An instruction by itself: all its tasks, on all threads. Arguments as of `call`."""
    arrays = [a for a in arguments if isinstance(a, np.ndarray)]
    with instructions(*arrays) as p:
        words = [address(a) if isinstance(a, np.ndarray) else a for a in arguments]
        p.add(name, tasks, *words, scratch=scratch)


def quantized(x):
    """x [T, K] as records of int8, uint8 [T, superblocks, RECORD]."""
    x = np.ascontiguousarray(x, np.float32)
    with instructions(x) as p:
        records = p.records(x)
    blocks = -(-x.shape[1] // SUPERBLOCK)
    return np.ascontiguousarray(records[:, : blocks * RECORD]).reshape(-1, blocks, RECORD)


def random_bytes(rng, name, rows, cols):
    """Rows of a packed format: any bytes, but float scales that are finite."""
    values, nbytes = PACKED_BLOCKS[name]
    raw = rng.integers(0, 256, (rows, -(-cols // values), nbytes), dtype=np.uint8)
    for start in SCALES_AT[name]:
        d = (0.01 * rng.standard_normal(raw.shape[:2])).astype(np.float16)
        raw[..., start : start + 2] = d.view(np.uint8).reshape(*raw.shape[:2], 2)
    return raw.reshape(rows, -1)


def largest_bytes(rng, name, rows, cols):
    """As `random_bytes`, but every code and every integer scale is as large as it can be."""
    finite = random_bytes(rng, name, rows, cols).reshape(rows, -1, PACKED_BLOCKS[name][1])
    raw = np.full_like(finite, 0x7F if name == "q8_0" else 0xFF)
    for start in SCALES_AT[name]:
        raw[..., start : start + 2] = finite[..., start : start + 2]
    if name == "q6_k":
        raw[..., 192:208] = 0x80  # scales of -128
    return raw.reshape(rows, -1)


def weight(name, rows, cols, data):
    """A matrix as the ops get it."""
    return SimpleNamespace(
        format=name, rows=rows, cols=cols, data=data, prepared=None, linear=linear.linear
    )


def float_weight(rng, name, rows, cols):
    """(a weight in f32, f16 or bf16, its values)."""
    values = rng.standard_normal((rows, cols)).astype(np.float32)
    if name == "f32":
        return weight("f32", rows, cols, Cpu(2).upload_matrix(values)), values
    if name == "f16":
        raw = values.astype(np.float16)
        values = raw.astype(np.float32)
    else:
        raw = (values.view(np.uint32) >> 16).astype(np.uint16)
        values = (raw.astype(np.uint32) << 16).view(np.float32)
    raw = raw.view(np.uint8).reshape(rows, -1)
    data = Cpu(2).upload_packed(SimpleNamespace(raw=raw, format=name))
    return weight(name, rows, cols, data), values
