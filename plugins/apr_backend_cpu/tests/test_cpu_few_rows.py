"""The kernel of small batches against `matvec`, row by row and bit by bit."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from apr_backend_cpu import matvec as mv
from apr_backend_cpu.activations import RECORD, SUPERBLOCK, quantize
from apr_backend_cpu.few_rows import KINDS, multiply_few
from apr_backend_cpu.formats import FORMATS

U, ROWS = np.uint64, 16
SCALES_AT = {"q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "q8_0": range(0, 272, 34)}
CODES = {"q4_k": mv.Q4_K, "q5_k": mv.Q5_K, "q6_k": mv.Q6_K, "q8_0": mv.Q8_0}
OTHER_ISA = "--print-digest"


def tile(rng, name, n):
    """16 rows of n superblocks: any bytes, but float scales that are finite."""
    raw = rng.integers(0, 256, (ROWS, n, FORMATS[name].nbytes), dtype=np.uint8)
    for start in SCALES_AT[name]:
        d = (0.01 * rng.standard_normal((ROWS, n))).astype(np.float16)
        raw[..., start : start + 2] = d.view(np.uint8).reshape(ROWS, n, 2)
    return raw.reshape(ROWS, -1)


def products(name, w, records, one_by_one):
    """[T, 16], and a row of 16 after the last that must stay as it is."""
    tokens, n, _ = records.shape
    out = np.full((tokens + 1, ROWS), 7, np.float32)
    room = np.empty(n * mv.MATVEC_ROOM, np.uint8)
    code, row_bytes, xs, os_ = (U(v) for v in (CODES[name], w.shape[1], n * RECORD, 4 * ROWS))
    wp, xp, op, rp = (U(a.ctypes.data) for a in (w, records, out, room))
    if not one_by_one:
        multiply_few(code, wp, row_bytes, xp, xs, U(tokens), op, os_, U(n), rp)
        return out
    for t in range(tokens):
        mv.matvec(code, wp, row_bytes, xp + U(t) * xs, op + U(t) * os_, U(n), rp)
    return out


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("tokens", [*range(1, 10), 12, 15])
@pytest.mark.parametrize("n", [1, 4, 8])
def test_a_row_gives_the_same_bits_in_a_small_batch(name, tokens, n):
    rng = np.random.default_rng(tokens)
    w = tile(rng, name, n)
    records = quantize(rng.standard_normal((tokens, n * SUPERBLOCK)).astype(np.float32))
    got, expected = (products(name, w, records, one_by_one) for one_by_one in (False, True))
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_integers_fit(name, sign):
    """Every weight byte and every activation the largest there is."""
    n = 2
    w = tile(np.random.default_rng(0), name, n)
    full = np.full_like(w, 0x7F if name == "q8_0" else 0xFF).reshape(ROWS, n, -1)
    for start in SCALES_AT[name]:
        full[..., start : start + 2] = w.reshape(ROWS, n, -1)[..., start : start + 2]
    if name == "q6_k":
        full[..., 192:208] = 0x80  # scales of -128
    records = quantize(np.full((8, n * SUPERBLOCK), 3.0 * sign, np.float32))
    w = full.reshape(ROWS, -1)
    got, expected = (products(name, w, records, one_by_one) for one_by_one in (False, True))
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_every_format_has_a_kernel_at_its_code():
    assert len(KINDS) == len(FORMATS)
    assert [CODES[name] for name in FORMATS] == list(range(len(FORMATS)))


def digest():
    """Of products with all formats and kernels."""
    rng, found = np.random.default_rng(1), hashlib.sha256()
    x = rng.standard_normal((8, 2 * SUPERBLOCK)).astype(np.float32)
    records = quantize(x)
    for name in FORMATS:
        w = tile(rng, name, 2)
        for tokens in (1, 2, 3, 5, 8):
            found.update(products(name, w, records[:tokens], False).tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("isa", ["avx2", "generic"])
def test_every_instruction_set_gives_the_same_bits(isa):
    """Run in another process, because the choice is made when the kernels are made."""
    done = subprocess.run(
        [sys.executable, __file__, OTHER_ISA], env=os.environ | {"APR_CPU_ISA": isa},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [isa, digest()]


if __name__ == "__main__" and OTHER_ISA in sys.argv:
    from apr_backend_cpu.vector_ir import DOT_MODE

    print(DOT_MODE, digest())
