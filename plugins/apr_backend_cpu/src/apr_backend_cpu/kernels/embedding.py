"""Embedding rows, decoded to float32 in the same steps as the formats' own decoders."""

from __future__ import annotations

import numpy as np
from numba import carray

from apr_backend_cpu.kernels.linear.dense import LOADERS, Loader
from apr_backend_cpu.kernels.linear.formats import FORMATS, Format, byte, six_bit
from apr_backend_cpu.kernels.source import helper, kernel, vector
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import F32, I8, I16, I32, Value, const, vector_of
from apr_backend_cpu.kernels.vector.memory import U, call, ints_at, pointer
from apr_backend_cpu.kernels.vector.rows import Values

V32F = vector_of(F32, 32)
MOST_BYTES = 256  # bytes of a block, in the buffer for a row's last one


def _half(b: Builder, p: Value) -> Value:
    return b.from_half(b.read(p, I16))


def _affine(b: Builder, p: Value) -> list[tuple[Values, Value]]:
    """Return, for each run of q4_k or q5_k, the step of its codes and the amount to subtract."""
    d, dmin = _half(b, p), _half(b, b.at(p, 2))
    scales, mins = six_bit(b, *(b.read(b.at(p, 4 + 4 * k), I32) for k in range(3)))

    def times(factor: Value, words: Values, r: int) -> Value:
        return b.fmul(factor, b.uitofp(byte(b, words, r), F32))

    return [([times(d, scales, r)] * 2, times(dmin, mins, r)) for r in range(8)]


def _centred(b: Builder, p: Value) -> list[tuple[Values, Value]]:
    """Return, for each run of q6_k, the steps of both halves."""
    d = _half(b, b.at(p, 208))
    steps = [b.fmul(d, b.sitofp(b.read(b.at(p, 192 + g), I8), F32)) for g in range(16)]
    return [(steps[2 * r : 2 * r + 2], const(F32, 0.0)) for r in range(8)]


def make_decode(name: str, format: Format) -> None:
    """Declare a function that decodes a block. Arguments: addresses of the block and its values."""

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        p, out = args
        if format.has_minima:
            runs, zero = _affine(b, p), 0
        elif format.group:
            runs, zero = _centred(b, p), 32
        else:
            runs, zero = [([_half(b, p)] * 2, const(F32, 0.0))], format.zero
        for r, (steps, low) in enumerate(runs):
            codes = b.fsub(b.uitofp(format.row(b, p, r), V32F), const(V32F, float(zero)))
            value = b.fmul(b.join(*(b.splat(step) for step in steps)), codes)
            b.write(b.fsub(value, b.splat(low, 32)), b.at(out, 128 * r))

    vector(name, "pp", emit)


def make_widen(name: str, loader: Loader) -> None:
    """Declare a function: convert 16 values to float32. Arguments: both addresses."""
    vector(name, "pp", lambda b, args: b.write(loader(b, args[0]), args[1]))


for _name, _format in FORMATS.items():
    if not _format.declared:
        make_decode(f"decode_{_name}", _format)
for _name, (_loader, _) in LOADERS.items():
    make_widen(f"decode_{_name}", _loader)


@helper
def _copy(source, target, nbytes):
    original = carray(pointer(U(source)), (nbytes,), np.uint8)
    copy = carray(pointer(U(target)), (nbytes,), np.uint8)
    for i in range(nbytes):
        copy[i] = original[i]


@kernel()
def embed_task(arguments, i, scratch):
    """Decode one row of an embedding.

    Arguments: ids, data, bytes per row, columns, out, the format's function, values and bytes of a
    block.
    """
    a = ints_at(arguments, 8)
    cols, block, nbytes = a[3], a[6], a[7]
    at, out = a[1] + ints_at(a[0], i + 1)[i] * a[2], a[4] + 4 * cols * i
    whole, left = cols // block, cols % block
    for n in range(whole):
        call(U(a[5]), (U(at + n * nbytes), U(out + 4 * block * n)))
    if left > 0:
        last = at + whole * nbytes
        _copy(last, scratch, min(nbytes, at + a[2] - last))
        call(U(a[5]), (U(scratch), U(scratch + MOST_BYTES)))
        _copy(scratch + MOST_BYTES, out + 4 * block * whole, 4 * left)
