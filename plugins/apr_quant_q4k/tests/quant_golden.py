"""Writes data/quant_golden.json: llama.cpp's errors on seeded tensors, and the bytes we encode.

    python plugins/apr_quant_q4k/tests/quant_golden.py

It needs llama-cpp-python, which takes minutes to build; the tests need only the file it wrote. Run
it again after a change of the search, which changes our bytes, or of llama.cpp.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from pathlib import Path

import numpy as np

from apr_quant_q4k import reference
from apr_quant_q4k.codecs import IQ4_NL, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0

PATH = Path(__file__).parent / "data" / "quant_golden.json"
CODECS = {
    "q4_k": Q4K(), "q5_k": Q5K(), "q6_k": Q6K(), "q8_0": Q8_0(), "q4_0": Q4_0(), "q4_1": Q4_1(),
    "q5_0": Q5_0(), "q5_1": Q5_1(), "iq4_nl": IQ4_NL(),
}  # fmt: skip
GGML_IDS = {
    "q4_k": 12, "q5_k": 13, "q6_k": 14, "q8_0": 8, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7,
    "iq4_nl": 20,
}  # fmt: skip
SMALL = ("q4_0", "q4_1", "q5_0", "q5_1")  # that the gguf package encodes as llama.cpp does
KINDS = ("gaussian", "laplace", "outliers", "uniform", "sparse")
ROWS, COLS = 64, 1024


def sample(kind):
    """f32 [64, 1024] at the scale of weights."""
    rng = np.random.default_rng(42)
    x = rng.standard_normal((ROWS, COLS))
    if kind == "laplace":
        x = rng.laplace(size=(ROWS, COLS))
    elif kind == "outliers":
        x[rng.random((ROWS, COLS)) < 0.002] *= 20
    elif kind == "uniform":
        x = rng.uniform(-1, 1, (ROWS, COLS))
    elif kind == "sparse":
        x *= rng.random((ROWS, COLS)) < 0.1
    return (0.02 * x).astype(np.float32)


def exact_sample(rows=8, cols=768):
    """f32 made of sums of integers: the same bits on every machine and under every NumPy."""
    raw = np.random.PCG64(7).random_raw(rows * cols)
    parts = [((raw >> np.uint64(16 * k)) & np.uint64(0xFFFF)).astype(np.int64) for k in range(4)]
    bells = (sum(parts) - 2 * 0xFFFF).reshape(rows, cols)
    bells[:, ::61] *= 9
    return bells.astype(np.float32) / np.float32(1 << 21)


def decoded(name, raw, cols):
    """What the bytes of rows mean, by the NumPy reference."""
    codec = CODECS[name]
    return getattr(reference, name)(raw.reshape(-1, codec.nbytes)).reshape(len(raw), -1)[:, :cols]


def relative_rmse(actual, expected):
    """Root of the ratio of squared errors to squared values."""
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


def llama_cpp_encode(name, x):
    """The bytes of llama.cpp's quantizer. Raises ImportError where it is not installed."""
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(iter(sorted(folder.glob("*ggml-base.*"))))))
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, pointer, pointer, count, count, count, pointer,
    ]  # fmt: skip
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    codec = CODECS[name]
    out = np.zeros((len(x), x.shape[1] // codec.block * codec.nbytes), np.uint8)
    library.ggml_quantize_chunk(
        GGML_IDS[name], x.ctypes.data, out.ctypes.data, 0, len(x), x.shape[1], None
    )
    return out


def llama_cpp_errors(name):
    """Relative RMSE by kind of tensor."""
    tensors = {kind: sample(kind) for kind in KINDS}
    return {
        kind: relative_rmse(decoded(name, llama_cpp_encode(name, x), COLS), x)
        for kind, x in tensors.items()
    }


def digest(raw):
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(raw.tobytes()).hexdigest()


def main():
    """Write the file."""
    import llama_cpp

    x = exact_sample()
    golden = {
        "llama_cpp": llama_cpp.__version__,
        "llama_cpp_errors": {name: llama_cpp_errors(name) for name in CODECS},
        "our_first_block": {
            name: c.encode(x)[0, : c.nbytes].tobytes().hex() for name, c in CODECS.items()
        },
        "our_bytes": {name: digest(c.encode(x)) for name, c in CODECS.items()},
    }
    PATH.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
