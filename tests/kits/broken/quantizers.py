"""A plain 4-bit codec that passes its kit, and a wrong one for each of the kit's checks."""

from __future__ import annotations

import random
import threading
from math import ceil

import numpy as np

from apr_core.declarations import Layout, Numbers, Quantizer
from apr_core.errors import FormatError, QuantizationError
from apr_core.plugin import QuantizerPlugin

BLOCK, NBYTES = 32, 18
LAYOUT = Layout(group=32, codes=2, bits=4, zero=8, scale=(Numbers(0, "f16"),))


def declare(codec, **fields):
    """The declaration of a class in this module."""
    fields = {"block": BLOCK, "bytes_per_block": NBYTES, "layout": LAYOUT} | fields
    return Quantizer("toy", f"{codec.__module__}:{codec.__name__}", summary="a toy", **fields)


class Plain(QuantizerPlugin):
    """Blocks of 32: a float16 scale, then codes of -7 to 7, raised by 8, two a byte."""

    def encode(self, rows):
        self.check(rows)
        rows = self.prepared(rows)
        padded = self.padded(rows).reshape(-1, BLOCK)
        scale = self.scales(padded)
        step = scale.astype(np.float32)
        codes = self.codes(padded, np.where(step == 0, np.float32(1), step))
        return self.packed(scale, codes).reshape(len(rows), -1)

    def decode(self, raw, cols):
        across = ceil(cols / BLOCK)
        if raw.shape[1] != across * NBYTES:
            raise FormatError(f"{raw.shape[1]} bytes for {cols} columns")
        blocks = np.ascontiguousarray(raw).reshape(-1, NBYTES)
        scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
        codes = np.stack([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=-1).reshape(-1, BLOCK)
        values = (codes.astype(np.float32) - 8) * scale
        return self.finished(values).reshape(len(raw), across * BLOCK)[:, :cols]

    def check(self, rows):
        if not np.isfinite(rows).all():
            raise QuantizationError("a value is NaN or infinite")
        if np.abs(rows).max() > 7 * 65504:
            raise QuantizationError("a value is out of range")

    def prepared(self, rows):
        return rows

    def padded(self, rows):
        return np.pad(rows, ((0, 0), (0, -rows.shape[1] % BLOCK)))

    def scales(self, x):
        return (np.abs(x).max(axis=1, keepdims=True) / 7).astype("<f2")

    def codes(self, x, step):
        return (np.clip(np.rint(x / step), -7, 7) + 8).astype(np.uint8)

    def packed(self, scale, codes):
        raw = np.zeros((len(codes), NBYTES), np.uint8)
        raw[:, :2] = scale.view(np.uint8)
        raw[:, 2:] = codes[:, ::2] | codes[:, 1::2] << 4
        return raw

    def finished(self, values):
        return values


class LongRows(Plain):
    def encode(self, rows):
        return np.pad(super().encode(rows), ((0, 0), (0, NBYTES)))


class SignedBytes(Plain):
    def encode(self, rows):
        return super().encode(rows).view(np.int8)


class DoubleValues(Plain):
    def finished(self, values):
        return values.astype(np.float64)


class UnevenRows(Plain):
    """Forgets the last, incomplete block."""

    def encode(self, rows):
        whole = max(BLOCK, rows.shape[1] // BLOCK * BLOCK)
        return super().encode(rows[:, :whole])


class Truncates(Plain):
    def codes(self, x, step):
        return (np.clip(np.trunc(x / step), -7, 7) + 8).astype(np.uint8)


class SwapsNibbles(Plain):
    def packed(self, scale, codes):
        return super().packed(scale, codes.reshape(-1, 16, 2)[:, :, ::-1].reshape(-1, BLOCK))


class Honest(Plain):
    max_error = 0.145


class NoBound(Plain):
    max_error = 10.0


class TooProud(Plain):
    def __init__(self):
        self.max_error = {"gaussian": 0.05}


class SmallestStep(Plain):
    def scales(self, x):
        return np.maximum(super().scales(x), np.float16(1e-3))


class PadsWithOnes(Plain):
    def padded(self, rows):
        missing = -rows.shape[1] % BLOCK
        return np.pad(rows, ((0, 0), (0, missing)), constant_values=30)


class ZerosBecomeDust(Plain):
    def finished(self, values):
        return np.where(values == 0, np.float32(1e-6), values)


class LosesConstants(Plain):
    def finished(self, values):
        values[np.ptp(values, axis=1) == 0] = 0
        return values


class OverflowsToInfinity(Plain):
    def check(self, rows):
        if not np.isfinite(rows).all():
            raise QuantizationError("a value is NaN or infinite")


class RefusesWithValueError(Plain):
    def check(self, rows):
        super().check(rows)
        if np.abs(rows).max() > 1e4:
            raise ValueError("too large")


class RaisesTheScale(Plain):
    """A scale that underflows becomes the smallest one, with codes made for the exact one."""

    def scales(self, x):
        self.exact = np.abs(x).max(axis=1, keepdims=True).astype(np.float64) / 7
        return np.maximum(super().scales(x), np.float16(1e-7))

    def codes(self, x, step):
        exact = np.where(self.exact == 0, 1, self.exact)
        return super().codes(x, exact)


class AssertsFiniteness(Plain):
    def check(self, rows):
        assert np.isfinite(rows).all()


class AcceptsNaN(Plain):
    def check(self, rows):
        if np.isinf(rows).any() or np.nanmax(np.abs(rows)) > 7 * 65504:
            raise QuantizationError("a value is out of range")


class Dithers(Plain):
    def codes(self, x, step):
        noise = np.random.default_rng().uniform(-0.1, 0.1, x.shape)
        return super().codes(x + noise * step, step)


class DithersEachObject(Plain):
    built = 0

    def __init__(self):
        DithersEachObject.built += 1
        self.shift = 0.05 * DithersEachObject.built

    def codes(self, x, step):
        return super().codes(x + self.shift * step, step)


class MainThreadOnly(Plain):
    def codes(self, x, step):
        shift = 0 if threading.current_thread() is threading.main_thread() else 0.2
        return super().codes(x + shift * step, step)


class HashesStrings(Plain):
    def codes(self, x, step):
        noise = random.Random(hash("a salt")).uniform(-0.1, 0.1)
        return super().codes(x + noise * step, step)


class OneScaleForAllRows(Plain):
    def scales(self, x):
        return np.broadcast_to(super().scales(x).max(), (len(x), 1)).copy()


class WritesToItsInput(Plain):
    def prepared(self, rows):
        if rows.flags.writeable:
            np.negative(rows, out=rows)
            return -rows
        return rows


class InMemoryOrder(Plain):
    def prepared(self, rows):
        return rows.ravel(order="K").reshape(rows.shape)


class NeedsToWrite(Plain):
    def prepared(self, rows):
        rows *= 1
        return rows


class Shrinks(Plain):
    def finished(self, values):
        return values * np.float32(0.94)


class ShrinksALittle(Plain):
    """Stays within any bound of its bytes."""

    def finished(self, values):
        return values * np.float32(0.98)


class OfNoKind:
    encode, decode = Plain.encode, Plain.decode


class EncodesIntoOneBuffer(Plain):
    built = {}

    def encode(self, rows):
        raw = super().encode(rows)
        buffer = self.built.setdefault(raw.shape, np.empty_like(raw))
        buffer[:] = raw
        return buffer


class DecodesIntoItsBuffer(Plain):
    """A buffer of the codec's own, handed out in parts."""

    def __init__(self):
        self.buffer = np.empty(1 << 20, np.float32)

    def finished(self, values):
        view = self.buffer[: values.size].reshape(values.shape)
        view[:] = values
        return view


class Lossless(Plain):
    """The values themselves, padded to blocks of 32: 128 bytes each."""

    max_error = 0.0

    def encode(self, rows):
        self.check_finite(rows)
        return np.ascontiguousarray(self.padded(rows)).view(np.uint8)

    def decode(self, raw, cols):
        if raw.shape[1] != ceil(cols / BLOCK) * BLOCK * 4:
            raise FormatError(f"{raw.shape[1]} bytes for {cols} columns")
        return np.ascontiguousarray(raw).view(np.float32)[:, :cols]

    def check_finite(self, rows):
        if not np.isfinite(rows).all():
            raise QuantizationError("a value is NaN or infinite")


class DecodesInPlace(Plain):
    def decode(self, raw, cols):
        raw ^= 0
        return super().decode(raw, cols)


class DecodesAnything(Plain):
    def decode(self, raw, cols):
        wanted = ceil(cols / BLOCK) * NBYTES
        fitting = np.pad(raw, ((0, 0), (0, NBYTES)))[:, :wanted]
        return super().decode(fitting, cols)
