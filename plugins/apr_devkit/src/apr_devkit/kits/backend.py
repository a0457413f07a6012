"""The kit for backends: arrays, sampling, every op and format, and models of every family."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import AprError, BackendError, KVType, SamplingMetadata
from apr_core.runtime import Model, load, make_backend, sample
from apr_devkit.kits.cases import KV, KV_TYPES, Call, attention_cases, flat
from apr_devkit.kits.checks import equal, no, skip
from apr_devkit.kits.kernel import DeviceKit, OpChecks, OpComparison, nan_memory
from apr_devkit.kits.measures import difference
from apr_devkit.kits.ops import differences
from apr_devkit.kits.rig import NAME as REFERENCE
from apr_devkit.kits.rig import with_reference
from apr_devkit.tiny import Floats, tiny_apr

SHAPES = ((1,), (0,), (7,), (3, 37), (2, 0, 4), (2, 257, 16))
DTYPES = {"f32": "float32", "f16": "float16"}
NO_DEVICE = 999983  # more than there will be
LARGE = 1 << 20  # values of an array whose memory must be freed


class ArrayChecks(DeviceKit):
    """Zeros, uploads, downloads, and memory that is freed."""

    def test_it_is_made_with_any_number_of_threads(self) -> None:
        """It takes `threads=`, says what it is, and is called what it is declared as."""
        for threads in (1, 2, None):
            device, declared = self.make_device(self.name, threads), self.declaration.name
            equal("name", device.name, declared)
            line = device.describe()
            assert isinstance(line, str) and line.strip() and "\n" not in line, (
                f"describe() returns {line!r}, expected one line about the device"
            )

    def test_a_device_that_is_not_there_is_refused(self) -> None:
        """A number that no device has is refused, whether or not it lets its users choose one."""
        self.make_device(self.name)
        name = f"{self.name}:{NO_DEVICE}"
        with suppress(BackendError):
            device = make_backend(self.registry, name, None)
            raise AssertionError(f"there is no {name}, and it was made: {device.describe()}")

    def test_zeros_are_zeros(self) -> None:
        """`zeros` gives new zeros of the shape and dtype asked for, by default f32."""
        for (dtype, expected), shape in product(DTYPES.items(), SHAPES):
            with nan_memory(self.device):
                array = self.device.zeros(shape, dtype)
            values, where = self.device.download(array), f"of zeros({shape}, {dtype!r})"
            equal(f"shape {where}", tuple(array.shape), shape)
            equal(f"dtype {where}", values.dtype.name, expected)
            equal(f"nbytes {where}", array.nbytes, values.size * values.itemsize)
            assert not values.any(), f"{where[3:]} is not zero: {values[values != 0][:3]}"
        one, other = self.device.zeros((3, 4)), self.device.zeros((3, 4))
        one[...] = 1.0
        assert self.device.download(one).all(), "writing to zeros in place has no effect"
        values = self.device.download(other)
        assert not values.any(), "two results of zeros share memory"
        equal("dtype of zeros by default", values.dtype.name, "float32")

    def test_uploads_come_back(self) -> None:
        """What is uploaded is downloaded again to the bit, and is not changed by that."""
        for label, array in _samples():
            before = array.copy()
            back = self.device.download(self.device.upload(array))
            equal(f"{label}: what comes back", type(back), np.ndarray)
            equal(f"{label}: shape", back.shape, before.shape)
            equal(f"{label}: dtype", back.dtype.name, before.dtype.name)
            assert back.tobytes() == before.tobytes(), f"{label}: other values came back"
            if array.ndim == 2 and array.size:
                self.device.upload_matrix(array)  # which may change its layout
            assert array.tobytes() == before.tobytes(), f"{label}: an upload changed its argument"

    def test_slices_are_written_in_place(self) -> None:
        """States are written through slices, and `+ 0` copies: so are snapshots made."""
        array = self.device.zeros((2, 6, 3))
        array[:, 1:3] = self.device.upload(np.arange(12, dtype=np.float32).reshape(2, 2, 3))
        copy = array[:, :3] + 0
        array[...] = self.device.upload(np.full((2, 6, 3), 5, np.float32))
        expected = np.concatenate([np.zeros((2, 1, 3)), np.arange(12).reshape(2, 2, 3)], axis=1)
        same = np.array_equal(self.device.download(copy), expected)
        assert same, "a slice that was written and copied has changed"
        assert (self.device.download(array) == 5).all(), "array[...] = other does not write"

    def test_memory_comes_back(self) -> None:
        """Arrays that nobody refers to any more are gone, and `memory()` says so."""
        values = np.ones((2, LARGE // 2), np.float32)
        makers: dict[str, Callable[[], Any]] = {
            "upload": lambda: self.device.upload(values.copy()),
            "upload_matrix": lambda: self.device.upload_matrix(values.copy()),
            "zeros": lambda: self.device.zeros((LARGE,)),
        }
        for name, make in makers.items():
            make()  # warm-up: what is allocated once may stay
            gc.collect()
            before, array = self.device.memory(), make()
            reference: Any = lambda: None  # noqa: E731
            with suppress(TypeError):  # weak references do not support this kind
                reference = weakref.ref(array)
            del array
            gc.collect()
            assert reference() is None, f"{name}: an array is kept when nobody refers to it"
            grown = (self.device.memory() or 0) - (before or 0)
            assert grown <= 0, f"{name}: memory() says that {grown} bytes more are in use"


def _samples() -> Iterator[tuple[str, NDArray[Any]]]:
    values = np.random.default_rng(2).standard_normal((5, 37)).astype(np.float32)
    special = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 3.4e38, 1 + 2**-23], np.float32)
    yield "float32 [5, 37]", values
    yield "float32 with NaN, Inf and subnormals", special
    yield "every second column of float32", values[:, ::2]
    yield "float32, transposed", values.T
    yield "no rows of float32", values[:0]
    yield "one float32", values[:1, 0]
    yield "int64", np.array([0, -1, 2**62, -(2**62)])
    yield "every second int64", np.arange(9)[::2]
    yield "int32", np.arange(-3, 4, dtype=np.int32)
    yield "no int64", np.zeros(0, np.int64)


NEAR = 1e-6  # relative to a probability: devices round exponentials differently
TEMPERATURES = (0.0, 1e-9, 0.4, 1.0, 30.0)
STEPS: tuple[tuple[int, float, float], ...] = (  # top-k, top-p, min-p
    (0, 1.0, 0.0), (0, 1.0, 0.05), (1, 1.0, 0.0), (5, 1.0, 0.0), (40, 0.9, 0.0), (20, 0.7, 0.02),
    (0, 0.0, 0.0), (0, 0.6, 0.0), (0, 0.95, 0.1), (10**6, 1.0, 1.0),
)  # fmt: skip
KINDS = tuple(product(TEMPERATURES, STEPS))


class ChoiceChecks(DeviceKit):
    """A backend that samples tokens itself takes the same tokens as the host."""

    def sample(self, rows: Floats, sampling: Sequence[SamplingMetadata | None]) -> list[int | None]:
        """Return the tokens that the backend samples from logits [rows, vocab]."""
        if not self.device.has("sample"):
            skip("it has no sample()")
        tokens = self.device.sample(self.device.upload(rows), sampling)
        kinds = sorted({type(token).__name__ for token in tokens} - {"int", "NoneType"})
        assert not kinds, f"sample gives {', '.join(kinds)}, expected int or None"
        equal("number of sampled tokens", len(tokens), len(sampling))
        return tokens

    def test_sampled_tokens_are_those_of_the_host(self) -> None:
        """Every row takes the host's token or none, the likeliest token always, in any batch."""
        for label, rows, valid in _rows():
            rng = np.random.default_rng(2)
            sampling = [
                SamplingMetadata(valid, t, *steps, uniform=float(rng.random()))
                for t, steps in KINDS
            ]
            tokens = self.sample(rows, sampling)
            no([f"{label}: {c}" for c in _complaints(rows, sampling, tokens)])
            greedy = self.sample(rows, [SamplingMetadata(valid)] * len(rows))
            best = rows[:, :valid].argmax(axis=1).tolist()
            assert greedy == best, f"{label}: {greedy} are not the likeliest tokens, {best}"
            for i in range(0, len(rows), 7):
                alone = self.sample(rows[i : i + 1], sampling[i : i + 1])[0]
                assert alone == tokens[i], f"{sampling[i]}: {alone} alone, {tokens[i]} in a batch"
        equal("what rows without metadata give", self.sample(rows[:2], [None, None]), [None, None])

    def test_rows_that_are_not_finite_are_left_to_the_host(self) -> None:
        """A NaN, +inf or no finite value gives None, however it is sampled; but not in padding."""
        good = np.random.default_rng(1).standard_normal(70).astype(np.float32)
        bad, padded = np.stack([good] * 3), np.stack([good] * 3)
        bad[0, 11], bad[1, 48], bad[2] = np.nan, np.inf, -np.inf
        padded[0, 65], padded[1, 66], padded[2, 64:] = np.nan, np.inf, np.inf
        for temperature, steps in product((0.0, 1.0), STEPS):
            metadata = SamplingMetadata(64, temperature, *steps, uniform=0.3)
            tokens = self.sample(bad, [metadata] * 3)
            assert tokens == [None] * 3, f"{metadata}: rows that are not finite give {tokens}"
            tokens = self.sample(padded, [metadata] * 3)
            no(_complaints(padded, [metadata] * 3, tokens))
            served = temperature > 0 or None not in tokens
            assert served, f"{metadata}: padding that is not finite is no reason to give {tokens}"


def _rows() -> Iterator[tuple[str, Floats, int]]:
    """Yield (name, logits [rows, vocab] with a row for each kind, number of valid ids)."""
    rng, count = np.random.default_rng(0), len(KINDS)
    plain = (rng.standard_normal((count, 97)) * 3).astype(np.float32)
    yield "97 scores", plain, 97
    ties = rng.integers(-2, 3, (count, 97)).astype(np.float32)
    yield "equal scores", ties * rng.choice([-0.0, 0.5], ties.shape).astype(np.float32), 97
    padded = plain.copy()
    padded[:, 60:] += 100
    yield "60 scores and padding", padded, 60
    masked = np.where(rng.random(plain.shape) < 0.8, np.float32(-np.inf), plain)
    masked[:, 3] = 0.25
    yield "masked scores", masked, 97
    yield "5003 scores", (rng.standard_normal((count, 5003)) * 4).astype(np.float32), 5001


def _complaints(
    rows: Floats, sampling: Sequence[SamplingMetadata], tokens: Sequence[int | None]
) -> list[str]:
    complaints = []
    for row, metadata, token in zip(rows, sampling, tokens, strict=True):
        near = {min(max(metadata.uniform + by, 0.0), 1 - NEAR) for by in (-NEAR, 0.0, NEAR)}
        allowed = {sample(row, replace(metadata, uniform=uniform)) for uniform in near}
        if token is not None and token not in allowed:
            complaints.append(f"{metadata} takes {token}, the host {sorted(allowed)}")
    return complaints


EXACT, ROUNDED = 1e-7, 3e-2  # NMSE of logits, with dense and with packed weights
DEEP = 0.1  # how much a gain may differ from 1: rounding in many layers is no longer mere noise
PROMPT, LENGTH = 70, 250  # tokens; the second is just below where a cache grows
SHORT = 5


class ModelChecks(OpComparison):
    """Whole models: every installed family's tiny one, in all kinds of steps."""

    def families(
        self, recipe: str = "f32", some: Callable[[Model], bool] | None = None
    ) -> Iterator[tuple[str, Path]]:
        """Yield (name, tiny model) of every family. Skips at the end if some have none.

        With `some`, of the models for which it is true, those that together bind every op and
        format that any of them does.
        """
        missing, declared, _ = [], self.registry.declarations("family"), self.device
        made: list[tuple[str, Path]] = []
        for owned in declared:
            name = owned.declaration.name
            folder = self.folder() / f"{name}-{recipe}"
            make = partial(tiny_apr, name, folder, recipe, registry=self.registry)
            try:
                path = self.once(f"tiny {name} {recipe}", make)
            except AprError as error:
                missing.append(f"{name}: {error.message}")
            else:
                made.append((name, path))
        yield from self._covering(made, some) if some else made
        if missing or not declared:
            skip("; ".join(missing) or "no family is installed")

    def _covering(
        self, made: list[tuple[str, Path]], some: Callable[[Model], bool]
    ) -> Iterator[tuple[str, Path]]:
        bound: list[tuple[set[tuple[str, str]], tuple[str, Path]]] = []
        for one in made:
            with self.open(one[1]) as model:
                if some(model):
                    bound.append((set(model.report.bound), one))
        seen: set[tuple[str, str]] = set()
        for ops, one in sorted(bound, key=lambda each: -len(each[0])):
            if not ops <= seen:
                seen |= ops
                yield one

    def open(self, path: Path, backend: str = "", **options: Any) -> Model:
        """Load a model on this backend, or on the references."""
        registry = with_reference(self.registry)
        return load(path, backend or self.name, registry=registry, **options)

    def test_every_family_runs(self) -> None:
        """Every installed family's logits are those of the references on NumPy."""
        for family, path in self.families():
            no([f"{family}: {c}" for c in self._compared(path, EXACT)])

    def test_every_family_runs_packed(self) -> None:
        """The same with packed weights, as far as its kernels read them, in enough families."""
        read = {format for op, format in self.device.kernels if op == "linear"}
        declared = [owned.declaration for owned in self.registry.declarations("recipe")]
        recipes = [d.name for d in declared if read & set(d.formats)]
        if not recipes:
            skip("its kernel table reads no format of any recipe")
        for family, path in self.families(recipes[0], some=lambda model: True):
            no([f"{family}, {recipes[0]}: {c}" for c in self._compared(path, ROUNDED, SHORT)])

    def ran(self, path: Path, length: int = LENGTH) -> tuple[list[Floats], int]:
        """Return a tiny model's logits, computed once, and the bytes of state it leaves."""

        def run() -> tuple[list[Floats], int]:
            with self.open(path) as model:
                return run_model(model, length), model.state_bytes()

        return self.once(f"logits of {path}", run)

    def _compared(self, path: Path, tolerance: float, length: int = LENGTH) -> list[str]:
        logits, state = self.ran(path, length)
        with self.open(path) as model, self.open(path, REFERENCE, kv_type=model.kv_type) as other:
            pairs = enumerate(zip(logits, run_model(other, length), strict=True), 1)
        wrong = ((i, difference(a, b, tolerance, DEEP)) for i, (a, b) in pairs)
        held = [f"{state} bytes of state are held after all slots were freed"] if state else []
        return [f"logits of step {i} differ: {c}" for i, c in wrong if c] + held

    def test_captured_steps_are_the_same_bits(self) -> None:
        """A captured step gives the very logits of one that is not."""
        if not self.device.has("capture"):
            skip("it has no capture()")
        obstacles: list[str] = []

        def recorded(model: Model) -> bool:
            why = model.report.unrecorded[:1]
            obstacles.extend(f"{model.config.family}: {line}" for line in why)
            return not why

        for family, path in self.families(some=recorded):
            with self.open(path) as plain:
                plain.captures = False
                pairs = zip(self.ran(path)[0], run_model(plain), strict=True)
                for i, (a, b) in enumerate(pairs, 1):
                    assert a.tobytes() == b.tobytes(), f"{family}: step {i} differs if captured"
        if obstacles:
            skip(f"steps are not recorded: {'; '.join(obstacles)}")

    def test_kv_types_work(self) -> None:
        """Attention works with every precision of keys and values it claims."""
        claimed: tuple[KVType, ...] = self.device.kv_types
        unknown = sorted(set(claimed) - set(KV_TYPES))
        assert not unknown, f"kv_types has {unknown}, known are {', '.join(KV_TYPES)}"
        assert "f32" in claimed, "kv_types must have f32"
        for kv_type in claimed:
            problems = []
            for case in attention_cases(kv_type):
                calls = _in_f32(case.calls()) if kv_type == "q8" else None
                expected, outcome = self.references.run(case, calls), self.runner.run(case)
                problems += [f"{case}: {c}" for c in differences(outcome, expected, case.tolerance)]
            no(problems)


def run_model(model: Model, length: int = LENGTH) -> list[Floats]:
    """Return logits of a prompt, of decoding while the cache grows, and of two sequences."""
    rng = np.random.default_rng(5)
    ids = [int(i) for i in rng.integers(0, model.config.vocab_size, PROMPT + length + 8)]
    logits: list[Floats] = [model.logits(ids[:PROMPT], chunk=64)]
    first = model.new_slot()
    for start in range(0, length, 128):
        logits.append(model.forward([(first, ids[start : min(start + 128, length)])]))
    logits += [model.forward([(first, [i])]) for i in ids[length : length + 8]]
    second = model.new_slot()
    logits.append(model.forward([(first, ids[:1]), (second, ids[:5])]))
    logits += [model.forward([(first, [i]), (second, [i])]) for i in ids[:3]]
    model.free_slot(first)
    logits.append(model.forward([(second, ids[:1])]))
    model.free_slot(second)
    return logits


def _in_f32(calls: list[Call]) -> list[Call]:
    caches = {id(a): replace(a, dtype="f32") for a in flat(calls) if isinstance(a, KV)}
    return [tuple(caches.get(id(a), a) for a in call) for call in calls]


class BackendConformance(ModelChecks, OpChecks, ChoiceChecks, ArrayChecks):
    """Checks of one backend: it is compared with the reference bodies on NumPy.

        class TestMine(BackendConformance):
            backend = "mine"

    Errors are normalised mean square errors; tolerances are listed with the cases of each op
    (`cases`, `ops`, and what mixers bring). Other distributions' kernels for the backend are left
    out: `KernelConformance` checks those.
    """
