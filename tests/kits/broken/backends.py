"""Backends and kernels that are wrong in one way each, for the kits to catch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np

from apr_core.errors import AprError
from apr_core.generate.sampling import sample
from apr_core.ops import CORE_OPS
from apr_core.ops.binding import GENERIC
from apr_core.ops.layouts import decode as decode_layout
from apr_core.runtime import ReferenceBackend

HERE = __name__
KEPT = []  # what Leaks keeps
BUFFERS = {}  # arrays that kernels return again and again
_attention = CORE_OPS["attention"].body


def target(name):
    """Where the kit finds something of this module."""
    return f"{HERE}:{name}"


class Sound(ReferenceBackend):
    """Nothing is wrong with this one; the others change one thing."""

    name = "toy"


# kernels, each with the arguments of its op

OWN = [name for name, op in CORE_OPS.items() if not op.is_composite]
for name in OWN:
    globals()[f"own_{name}"] = partial(CORE_OPS[name].body, np)


def swiglu(gate, up):
    return CORE_OPS["swiglu"].body(np, gate, up)


def swiglu_of_one_percent_more(gate, up):
    return np.float32(1.01) * swiglu(gate, up)


def swiglu_in_place(gate, up):
    gate[...] = swiglu(gate, up)
    return gate


def swiglu_in_double(gate, up):
    return swiglu(gate.astype(np.float64), up)


def swiglu_that_raises(gate, up):
    raise ZeroDivisionError("no such number")


def swiglu_but_for_the_last(gate, up):
    """Leaves the last value as memory was."""
    out = np.empty(gate.shape, np.float32)
    out.reshape(-1)[:-1] = swiglu(gate, up).reshape(-1)[:-1]
    return out


def swiglu_into_one_buffer(gate, up):
    """Returns the same array for every call of the same size."""
    out = BUFFERS.setdefault(gate.shape, np.empty(gate.shape, np.float32))
    out[...] = swiglu(gate, up)
    return out


def linear_into_the_weights_buffer(x, w):
    """Keeps its result with the weight."""
    key = len(x), w.rows
    w.prepared = w.prepared or {}
    out = w.prepared.setdefault(key, np.empty(key, np.float32))
    out[...] = linear(x, w)
    return out


def attention_into_one_buffer(q, k, v, state, step, scale):
    """Returns a view of what it uses for every step."""
    buffer = BUFFERS.setdefault("attention", np.empty(1 << 20, np.float32))
    result = _attention(np, q, k, v, state, step, scale)
    out = buffer[: result.size].reshape(result.shape)
    out[...] = result
    return out


def swiglu_of_whole_rows(gate, up):
    """Takes a view for an array of its own."""
    size = gate.size
    start = gate.base if isinstance(gate.base, np.ndarray) else gate
    return swiglu(start.reshape(-1)[:size].reshape(gate.shape), up)


def swiglu_by_the_batch(gate, up):
    """Rounds otherwise where there is only one row."""
    if len(gate) > 1:
        return swiglu(gate, up)
    return swiglu(gate.astype(np.float64), up).astype(np.float32)


def attention_over_the_whole_room(q, k, v, state, step, scale):
    """Weighs what no token has written with zero: zero times NaN is NaN."""
    out = _attention(np, q, k, v, state, step, scale)
    return out + 0 * sum(state.keys[s.slot].sum() for s in step.segments)


def attention_that_writes_everywhere(q, k, v, state, step, scale):
    out = _attention(np, q, k, v, state, step, scale)
    for cache in state.keys.values():
        cache[:, 0] = 1.0
    return out


def attention_that_forgets(q, k, v, state, step, scale):
    """Keeps the values of every token but loses the last key."""
    out = _attention(np, q, k, v, state, step, scale)
    for s in step.segments:
        state.keys[s.slot][:, s.position + s.stop - s.start - 1] = 0
    return out


def dense(w):
    """A weight's values [rows, cols]."""
    if w.decode is None:
        return w.data
    if w.layout:
        return decode_layout(w.layout.layout, w.layout.block, w.layout.nbytes, w.data, w.cols)
    return w.decode(w.data, w.cols)


def linear(x, w):
    return x @ dense(w).T


def linear_of_one_percent_more(x, w):
    return np.float32(1.01) * linear(x, w)


def linear_of_other_rows(x, w):
    return x @ dense(w)[::-1].T


def rounded(x, bits):
    """float32 with so many bits of a mantissa, the first one included, rounded to nearest."""
    dropped = 24 - bits
    raw = np.array(x, np.float32).view(np.uint32) + np.uint32(1 << (dropped - 1))
    return (raw & np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)).view(np.float32)


def linear_of_8_bits(x, w):
    """Multiplies as bf16 where float32 is asked for."""
    return rounded(x, 8) @ rounded(dense(w), 8).T


def linear_of_11_bits(x, w):
    """Multiplies as a matrix unit does that shortens float32."""
    return rounded(x, 11) @ rounded(dense(w), 11).T


def linear_one_by_one(x, w):
    """Float32 throughout, added in the worst order."""
    out = np.zeros((len(x), w.rows), np.float32)
    for column, weights in zip(x.T, dense(w).T, strict=True):
        out += column[:, None] * weights
    return out


def silu_by_powers_of_two(x):
    """What a device without an exponential of its own does: all in float32."""
    power = np.exp2(np.float32(-1.442695) * np.maximum(x, np.float32(-87)))
    return x / (np.float32(1) + power)


def silu_of_11_bits(x):
    return rounded(silu_by_powers_of_two(x), 11)


def rms_norm_of_its_own_eps(x, w, eps, offset):
    return CORE_OPS["rms_norm"].body(np, x, w, 1e-6, offset)


def rms_norm_without_eps(x, w, eps, offset):
    return CORE_OPS["rms_norm"].body(np, x, w, 1e-30, offset)


def add_rms_norm_of_its_own_eps(x, more, w, eps, offset):
    return CORE_OPS["add_rms_norm"].body(np, x, more, w, 1e-6, offset)


NOT_A_FUNCTION = 3


def with_kernels(**kernels):
    """A sound backend with these kernels; `op__format` is a key with a format."""
    keys = {tuple(f"{k}__*".split("__")[:2]): target(name) for k, name in kernels.items()}
    return type("Toy", (Packed,), {"kernels": keys})


class Packed(Sound):
    """Keeps packed bytes as they are."""

    def upload_packed(self, matrix):
        return np.array(matrix.raw)


PACKED = Packed
READS_FLOATS = with_kernels(linear__f16="linear", linear__bf16="linear")
READS_LAYOUTS = type("Toy", (Packed,), {"kernels": {("linear", GENERIC): target("linear")}})


# backends


class Misnamed(Sound):
    name = "someone"


class TakesNoThreads(Sound):
    def __init__(self):
        super().__init__()


class TakesAnyDevice(Sound):
    def __init__(self, threads=None, device=None):
        super().__init__(threads)


class SaysTooMuch(Sound):
    def describe(self):
        return "a device\nand its history"


class ZerosAreEmpty(Sound):
    def zeros(self, shape, dtype="f32"):
        return np.empty(shape, np.float16 if dtype == "f16" else np.float32)


class ZerosAreWide(Sound):
    def zeros(self, shape, dtype="f32"):
        return np.zeros(shape, np.float32)


class ZerosAreShared(Sound):
    built = {}

    def zeros(self, shape, dtype="f32"):
        key = (tuple(shape), dtype)
        return self.built.setdefault(key, super().zeros(shape, dtype))


class HalfIsInteger(Sound):
    """Keeps keys and values as integers where they should be float16."""

    def zeros(self, shape, dtype="f32"):
        return np.zeros(shape, np.int16 if dtype == "f16" else np.float32)


class Silent(np.ndarray):
    """An array that does not say what it holds."""

    nbytes = 0


class HidesItsSize(Sound):
    def zeros(self, shape, dtype="f32"):
        return super().zeros(shape, dtype).view(Silent)


class Sticky(np.ndarray):
    """An array whose sum with zero is itself: a snapshot of it is none."""

    def __add__(self, other):
        return self if isinstance(other, int) and other == 0 else super().__add__(other)


class CopiesNothing(Sound):
    def zeros(self, shape, dtype="f32"):
        return super().zeros(shape, dtype).view(Sticky)


class UploadsHalf(Sound):
    def upload(self, array):
        return array.astype(np.float16).astype(array.dtype) if array.dtype.kind == "f" else array


class UploadsShortIntegers(Sound):
    def upload(self, array):
        return array.astype(np.int32) if array.dtype == np.int64 else np.array(array)


class UploadsWithoutStrides(Sound):
    """Copies as many bytes as there are, from where the array begins."""

    def upload(self, array):
        size = array.size
        start = array.base if isinstance(array.base, np.ndarray) else array
        return np.array(start.reshape(-1)[:size].reshape(array.shape))


class SpoilsMatrices(Sound):
    def upload_matrix(self, array):
        array *= 2
        return np.array(array)


class Leaks(Sound):
    def upload(self, array):
        KEPT.append(np.array(array))
        return KEPT[-1]


class SaysItLeaks(Sound):
    """Has a memory figure that only grows."""

    taken = 0

    def upload(self, array):
        type(self).taken += array.nbytes
        return np.array(array)

    def memory(self):
        return self.taken


class SmallNamespace:
    """NumPy without one function."""

    def __getattr__(self, name):
        if name == "log1p":
            raise AttributeError("no log1p here")
        return getattr(np, name)


class LacksAFunction(Sound):
    xp = SmallNamespace()


class ReplaysTheFirst(Sound):
    """Captures a step, and gives its logits for every other one of its size."""

    kernels: ClassVar = {(name, "*"): target(f"own_{name}") for name in OWN}

    def capture(self, function, note):
        seen = {}

        def captured(ids, step):
            key = step.n_rows
            result = function(ids, step)
            return seen.setdefault(key, result)

        return captured


class Samples(Sound):
    """Samples as the host does; the others change what they are asked for, or what they give."""

    def sample(self, logits, sampling):
        return [self.one(row, metadata) for row, metadata in zip(logits, sampling, strict=True)]

    def one(self, row, metadata):
        try:
            usable = metadata is not None and (row[: metadata.valid] < np.inf).all()
            return sample(row, metadata) if usable else None
        except AprError:
            return None


class SamplesTheLastOfEqual(Samples):
    def one(self, row, metadata):
        if metadata is None or metadata.temperature > 0:
            return super().one(row, metadata)
        token = super().one(row[: metadata.valid][::-1], metadata)
        return token if token is None else metadata.valid - 1 - token


class SamplesPadding(Samples):
    def one(self, row, metadata):
        return super().one(row, metadata and replace(metadata, valid=row.size))


class SamplesWithout(Samples):
    """Passes over one of the parameters."""

    without: ClassVar[dict[str, float]] = {}

    def one(self, row, metadata):
        return super().one(row, metadata and replace(metadata, **self.without))


def samples_without(**without):
    return type("Toy", (SamplesWithout,), {"without": without})


class SamplesNothing(Samples):
    def one(self, row, metadata):
        return None


class SamplesNumPyIntegers(Samples):
    def sample(self, logits, sampling):
        return np.array([token or 0 for token in super().sample(logits, sampling)])


class SamplesTooFew(Samples):
    def sample(self, logits, sampling):
        return super().sample(logits, sampling)[:-1]


class SamplesFromWhatIsNotFinite(Samples):
    def one(self, row, metadata):
        return super().one(np.nan_to_num(row), metadata)


class SamplesByTheBatch(Samples):
    def sample(self, logits, sampling):
        return super().sample(logits, sampling) if len(sampling) > 1 else [0]


class ClaimsBytes(Sound):
    kv_types = ("f32", "q8")


class ClaimsTheUnknown(Sound):
    kv_types = ("f32", "q3")


BITWISE = type("Toy", (with_kernels(swiglu="swiglu_by_the_batch"),), {"bitwise_rows": True})


def cannot_run():
    """A probe."""
    return 0, "there is no such device"


class SoundBits(Sound):
    """Claims bits that do not depend on the batch."""

    bitwise_rows = True
