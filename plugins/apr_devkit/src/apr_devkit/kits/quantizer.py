"""Kits for number formats: quantizers, by their sizes, errors and bytes, and recipes of them.

Errors are relative RMSE; `apr_devkit.kits.measures` has the yardstick. A format that spends its
bits otherwise, such as floats of 8 bits, states its own `max_error`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import product
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import (
    FIRST_FILE_ID,
    SOURCE,
    FormatError,
    FormatSpec,
    QuantizationError,
    QuantizerPlugin,
    TensorClass,
    layouts,
    number_formats,
)
from apr_core.runtime import PluginNotFound
from apr_devkit.kits import measures
from apr_devkit.kits.checks import PluginConformance, attribute, call_fresh, equal, refusal, skip
from apr_devkit.kits.measures import BELL, KINDS, Floats, Raw, block_sample, relative_rmse, sample


def golden_digest(codec: Any, block: int) -> str:
    """Return the SHA-256 of four rows of three blocks encoded by a codec, or a "module:Attr".

    Their values are made by integer sums alone, so they have the same bits everywhere.
    """
    codec = attribute(codec)() if isinstance(codec, str) else codec
    raw = np.random.PCG64(0).random_raw(4 * 3 * block)
    parts = [((raw >> np.uint64(16 * k)) & np.uint64(0xFFFF)).astype(np.int64) for k in range(4)]
    bells = (np.sum(parts, axis=0) - 2 * 0xFFFF).reshape(4, 3 * block)
    bells[:, ::61] *= 9
    encoded = codec.encode(bells.astype(np.float32) / np.float32(1 << 21))
    return hashlib.sha256(np.ascontiguousarray(encoded).tobytes()).hexdigest()


ROWS = 9  # of most inputs: a few chunks, and an odd number
TINY = (1e-4, 1e-6, 1e-8, 1e-20, 1e-38, 1e-45)
HUGE = (1e5, 1e10, 1e20, 1e37, float(np.finfo(np.float32).max))
NO_WORSE_THAN_ZEROS = 1.25  # as relative RMSE, where a scale has hardly any bits left
SHRINKING, STRETCHING = 1.1, 0.1  # times the squared error, where that is more
LAYOUT_TOLERANCE = 2.0**-20  # of a row's largest value: a few roundings of float32
# what `decode_tensor` turns into a sentence about the file
REFUSALS = (FormatError, ValueError, IndexError, TypeError)


class QuantizerConformance(PluginConformance):
    """Checks of one quantizer. Errors are relative RMSE.

        class TestNF4(QuantizerConformance):
            quantizer = "mine4"
            golden = "?"                           # optional: a SHA-256; the failure tells it

    Without a `max_error` of the codec, bounds follow from the declared bytes: see
    `apr_devkit.kits.measures`. A format that loses nothing states 0.0. `gain_tolerance`, 1%, suits
    what rounds to nearest or searches for the least error; what clips large values states more.
    """

    kind = "quantizer"
    quantizer: str = ""
    golden: str = ""

    @property
    def codec(self) -> QuantizerPlugin:
        """The codec object."""
        codec = self.registry.make("quantizer", self.name)
        kind, base = type(codec).__name__, QuantizerPlugin.__name__
        assert isinstance(codec, QuantizerPlugin), f"{kind} must derive from apr_core.plugin.{base}"
        return codec

    @property
    def block(self) -> int:
        """Values in a block."""
        return int(self.declaration.block)

    def encoded(self, x: Floats, where: str = "a sample") -> Raw:
        """Encode, and check type and size of the result: u8 [R, row bytes]."""
        d, raw = self.declaration, self.codec.encode(x)
        equal(f"what encode of {where} returns", _kind(raw), "array of uint8")
        row = ceil(x.shape[1] / d.block) * d.bytes_per_block
        what = f"with {d.bytes_per_block} bytes for {d.block} values, encode of {where}"
        equal(f"{what}, {list(x.shape)},", list(raw.shape), [len(x), row])
        return raw

    def decoded(self, raw: Raw, cols: int, where: str = "a sample") -> Floats:
        """Decode, and check type and size of the result and that it is finite: f32 [R, C]."""
        values = self.codec.decode(raw, cols)
        equal(f"what decode of {where} returns", _kind(values), "array of float32")
        equal(f"shape of what decode of {where} returns", list(values.shape), [len(raw), cols])
        bad = int((~np.isfinite(values)).sum())
        assert not bad, f"decode of {where} made {bad} values that are NaN or infinite"
        return values

    def round_trip(self, x: Floats, where: str = "a sample") -> Floats:
        """Encode and decode."""
        return self.decoded(self.encoded(x, where), x.shape[1], where)

    def bell(self, cols: int, scale: float = 1.0, rows: int = ROWS) -> Floats:
        """Return bell-shaped values, float32 [rows, cols]."""
        return sample(BELL, rows, cols, cols, scale)

    def bounds(self) -> dict[str, float]:
        """Return the largest error allowed, by kind of sample; fails if one promises nothing."""
        d, stated = self.declaration, self.codec.max_error
        derived = self.once(
            "bounds", partial(measures.default_bounds, self.block, d.bytes_per_block)
        )
        if stated is None:
            return derived
        bounds = dict(stated) if isinstance(stated, Mapping) else dict.fromkeys(KINDS, stated)
        assert set(bounds) <= set(KINDS), (
            f"max_error is about {sorted(bounds)}, known are {[*KINDS]}"
        )
        halved = measures.default_bounds(self.block, d.bytes_per_block / 2)
        for kind, bound in bounds.items():
            what = f"max_error of {kind} is {bound:g}; a plain format of half the bytes stays below"
            assert 0 <= bound <= halved[kind], f"{what} {halved[kind]:.4g}"
        return derived | bounds

    def within(self, bound: float, x: Floats, where: str) -> None:
        """Fail if a round trip loses more than the bound."""
        with np.errstate(all="ignore"):
            error = relative_rmse(self.round_trip(x, where), x)
        assert error <= bound, f"{where}: relative RMSE {error:.4g}, allowed is {bound:.4g}"

    def same(self, array: NDArray[Any], expected: NDArray[Any], what: str) -> None:
        """Fail if `what` returns anything else than expected."""
        equal(f"shape of {what}", array.shape, expected.shape)
        different = int((array != expected).sum())
        assert not different, f"{what} changes {different} of {expected.size} numbers"

    def _refusal(self, x: Floats, where: str) -> QuantizationError | None:
        """Return the error by which encode refuses values, if it does."""
        with np.errstate(all="ignore"):
            return refusal(QuantizationError, f"{where}: encode", self.codec.encode, x)

    def test_error_is_within_its_bound(self) -> None:
        """Sizes are as declared, and errors on all kinds of values are below what they promise."""
        bounds, b = self.bounds(), self.block
        for kind, bound in bounds.items():
            self.within(bound, block_sample(kind, b), kind)
        for scale in (1e-3, 1.0, 50.0):  # of weights and of what norms make of them
            self.within(bounds[BELL], block_sample(BELL, b, scale), f"values around {scale:g}")
        for cols in sorted({1, b - 1, b, b + 1, 2 * b, 3 * b - 1} - {0}):
            for rows in (1, 2, ROWS):
                where = f"{rows} rows of {cols} values"
                self.within(max(bounds.values()), self.bell(cols, rows=rows), where)
        for value in (1.0, -3.5, 1e-3, -0.02, 100.0):
            x = np.full((2, 2 * b), value, np.float32)
            self.within(max(bounds.values()), x, f"rows that hold {value:g}")

    def test_extremes_are_kept_or_refused(self) -> None:
        """Zeros and tiny values are kept, huge ones too or refused, and NaN is refused."""
        b, worst = self.block, max(self.bounds().values())
        for cols in (b, 2 * b + 1):
            top = float(np.abs(self.round_trip(np.zeros((3, cols), np.float32), "zeros")).max())
            assert top <= np.finfo(np.float32).tiny, f"zeros decode to up to {top:g}"
        for scale in TINY:
            x = self.bell(2 * b, scale)
            self.within(NO_WORSE_THAN_ZEROS, x, f"values around {scale:g}")
        for value in (np.nan, np.inf, -np.inf):
            for row, col in ((0, 0), (1, b), (ROWS - 1, 2 * b)):
                x, where = self.bell(2 * b + 1), f"{value} at row {row}, column {col}"
                x[row, col] = value
                assert self._refusal(x, where), f"{where}: encode accepts it"
        bell, one = self.bell(2 * b, rows=3).astype(np.float64), np.arange(2 * b) == 3
        for top in HUGE:
            for wide in (bell / np.abs(bell).max() * top, bell * 0 - top, np.where(one, top, bell)):
                x, where = wide.astype(np.float32), f"values up to {top:g}"
                if not self._refusal(x, where):
                    self.within(worst, x, where)

    def test_values_are_neither_shrunk_nor_stretched(self) -> None:
        """Decoded values are on the whole as large as the encoded ones: no gain hides in a bound.

        The gain is 1 where codes are rounded to nearest, and 1 - error^2 where levels are the means
        of what they stand for, which shows with 3 bits and less.
        """
        tolerance = self.codec.gain_tolerance
        if tolerance is None:
            skip("gain_tolerance is None: it is said to change the size of values")
        x = block_sample(BELL, self.block)
        decoded = self.round_trip(x)
        factor, squares = measures.gain(decoded, x), relative_rmse(decoded, x) ** 2
        least = 1 - max(tolerance, SHRINKING * squares)
        most = 1 + max(tolerance, STRETCHING * squares)
        what = f"decoded values are {factor:.4f} times what was encoded, beside rounding"
        assert least <= factor <= most, f"{what}; expected {least:.4f} to {most:.4f}"

    def test_input_may_be_any_view_and_is_left_alone(self) -> None:
        """Strided, transposed, read-only rows and bytes are read, and nothing is written there."""
        plain = self.bell(2 * self.block + 1)
        raw = self.encoded(plain.copy()).copy()
        wide = np.repeat(np.repeat(plain, 2, axis=0), 2, axis=1)
        locked, odd = plain.copy(), np.zeros(raw.size + 1, np.uint8)[1:].reshape(raw.shape)
        odd[:] = raw
        for array in (locked, odd):
            array.setflags(write=False)
        views = {
            "every second row": np.repeat(plain, 2, axis=0)[::2],
            "every second value": wide[::2, ::2],
            "columns first in memory": np.asfortranarray(plain),
            "read-only rows": locked,
        }
        for where, x in views.items():
            encoded = self.encoded(x, where)
            assert np.array_equal(x, plain), f"encode changed its input ({where})"
            self.same(encoded, raw, f"encoding {where}")
        cols, where = plain.shape[1], "read-only bytes at an odd address, as of a mapped file,"
        self.same(self.decoded(odd, cols, where), self.decoded(raw, cols), f"decoding {where}")

    def test_the_same_bytes_every_time(self) -> None:
        """Encoding twice, by another object, thread or process, gives the same bytes and values."""
        inputs = [self.bell(self.block + 64 * i) for i in range(8)]
        raws = [self.encoded(x).copy() for x in inputs]
        values = [self.decoded(r, x.shape[1]).copy() for r, x in zip(raws, inputs, strict=True)]
        codec = self.codec
        self.same(self.encoded(inputs[2]), raws[2], "encoding twice")
        self.same(self.load()().encode(inputs[2]), raws[2], "encoding by a second object")
        with ThreadPoolExecutor(4) as pool:
            encoded = list(pool.map(codec.encode, inputs))
            decoded = list(pool.map(lambda r, x: codec.decode(r, x.shape[1]), raws, inputs))
        everything: Any = zip([*encoded, *decoded], [*raws, *values], strict=True)
        for one, other in everything:
            self.same(one, other, "encoding or decoding on another thread")
        here, golden = golden_digest(codec, self.block), f"{__name__}:golden_digest"
        for seed in (1, 2):  # strings hash differently
            there = call_fresh(golden, self.declaration.target, self.block, hash_seed=seed)
            equal("what another process encodes to", there, here)

    def test_rows_are_independent(self) -> None:
        """However the rows are cut into chunks, the same bytes and values come out, and stay."""
        x = self.bell(2 * self.block + 1)
        whole = self.encoded(x).copy()
        values, results = self.decoded(whole, x.shape[1]).copy(), []
        for cut in [slice(at, at + step) for step in (1, 2, 5) for at in range(0, ROWS, step)]:
            where = f"rows {cut.start} to {min(cut.stop, ROWS)} alone"
            for result, expected, what in (
                (self.encoded(x[cut], where), whole[cut], f"encoding {where}"),
                (self.decoded(whole[cut], x.shape[1], where), values[cut], f"decoding {where}"),
            ):
                self.same(result, expected, what)
                results.append((result, expected, what))
        for result, expected, what in results:  # no buffer was reused
            self.same(result, expected, f"{what}, looked at after later calls,")

    def test_bytes_of_another_length_are_refused(self) -> None:
        """Too many or too few bytes for the columns are an error, not values."""
        cols = 2 * self.block
        raw = self.encoded(self.bell(cols))
        wrong = {"a byte less": raw[:, :-1], "a byte more": np.pad(raw, ((0, 0), (0, 1)))}
        for what, part in wrong.items():
            with suppress(*REFUSALS):
                self.codec.decode(part, cols)
                raise AssertionError(f"decode accepts rows with {what} than {cols} values take")

    def test_format_id_is_free(self) -> None:
        """The declared APR id is its own, or there is none and each file gives it one."""
        d = self.declaration
        number = d.dtype_id
        assert number is None or 0 <= number < FIRST_FILE_ID, (
            f"dtype_id {number}: ids from {FIRST_FILE_ID} up belong to files; declare None"
        )
        number_formats([FormatSpec(d.name, number, d.block, d.bytes_per_block)])

    def test_layout_means_what_decode_does(self) -> None:
        """The declared layout fits the block and decodes to the codec's values."""
        d = self.declaration
        layout = d.layout or skip("it declares no layout")
        layout.check(d.block, d.bytes_per_block)
        for kind in KINDS:
            x = block_sample(kind, self.block)[:, :-1]
            raw = self.encoded(x, kind)
            own = self.decoded(raw, x.shape[1], kind)
            meant = layouts.decode(layout, d.block, d.bytes_per_block, raw, x.shape[1])
            largest = np.maximum(np.abs(own).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
            miss = float((np.abs(own - meant) / largest).max())
            what = f"{kind}: the layout's values differ from decode's by {miss:.3g}"
            assert miss <= LAYOUT_TOLERANCE, f"{what} of a row's largest"

    def test_golden_bytes(self) -> None:
        """A fixed input encodes to the bytes that were recorded."""
        golden = self.golden or skip("no golden bytes are recorded")
        equal("SHA-256 of what it encodes to", golden_digest(self.codec, self.block), golden)


def _kind(thing: Any) -> str:
    array = isinstance(thing, np.ndarray)
    return f"array of {thing.dtype}" if array else type(thing).__name__


FLOATS = ("f32", "f16", "bf16")
SHAPES = ((256, 256), (1, 1), (7, 33), (4864, 896), (151936, 896), (64,), (96, 1, 4))
CLASSES = ("matrix", "value", "down", "fused_input", "sensitive", "embedding", "head")
LAYERS = ((None, 24), (0, 1), (0, 24), (1, 24), (11, 24), (23, 24), (79, 80))  # (layer, of)


class RecipeConformance(PluginConformance):
    """Checks of one recipe.

        class TestMine(RecipeConformance):
            recipe = "mine"

    It is asked about every class of tensor that contracts know, in roles and shapes of any family.
    """

    kind = "recipe"
    recipe: str = ""

    def test_every_tensor_gets_a_format_it_lists(self) -> None:
        """Each class of tensor gets one of the declared formats, a float, or its own precision."""
        known = {*self.declaration.formats, *FLOATS, SOURCE}
        recipe = self.registry.make("recipe", self.name)
        for tensor in questions():
            answer = recipe.format_for(tensor)
            names = answer if isinstance(answer, tuple) else (answer,)
            assert names and all(isinstance(n, str) and n in known for n in names), (
                f"{_text(tensor)} gets {answer!r}, expected one of {', '.join(sorted(known))}"
            )

    def test_listed_formats_are_installed(self) -> None:
        """The declaration lists quantizers alone, and an installed plugin provides each."""
        missing = []
        for name in self.declaration.formats:
            assert name not in (*FLOATS, SOURCE), f"{name!r} is no quantizer's name"
            try:
                self.registry.get("quantizer", name)
            except PluginNotFound as error:
                missing.append(f"{name} ({error.hint.splitlines()[0]})")
        if missing:
            skip(f"not installed: {'; '.join(missing)}")

    def test_the_same_answers_every_time(self) -> None:
        """Answers depend on the tensor alone, not on what was asked before, by whom or where."""
        target = self.declaration.target
        first, others = answers(target), {"asked backwards": answers(target, -1)[::-1]}
        for seed in (1, 2):  # strings hash differently
            again = call_fresh(f"{__name__}:answers", target, hash_seed=seed)
            others[f"in another process ({seed})"] = again
        for where, again in others.items():
            for tensor, one, other in zip(questions(), again, first, strict=True):
                assert one == other, f"{where}: {_text(tensor)} gets {one!r}, before {other!r}"


def questions() -> Iterator[TensorClass]:
    """Yield every class, shape and place in a model, in a role that no family has."""
    for name, shape, place in product(CLASSES, SHAPES, LAYERS):
        yield TensorClass(f"model.{name}.weight", f"kit_{name}", name, shape, *place)


def answers(target: str, step: int = 1) -> list[str]:
    """Return what a new object of a recipe's "module:Attr" answers, forwards or backwards."""
    recipe = attribute(target)()
    return [str(recipe.format_for(tensor)) for tensor in list(questions())[::step]]


def _text(tensor: TensorClass) -> str:
    where = "" if tensor.layer is None else f" in layer {tensor.layer} of {tensor.num_layers}"
    return f"class {tensor.quant_class}, shape {list(tensor.shape)}{where},"
