"""Tries a decode step on zeros, before weights are uploaded, to see if steps can be recorded.

A backend that records steps (`capture`) repeats what its ops did, without the Python between them.
So a step may hold nothing but ops, and only the backend's own. Here a decoder with a layer of each
kind runs on NumPy, with arrays that report where their values are read. `Unread`, their class, is
also that of results whose values do not exist yet, which a backend gives that records on NumPy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from traceback import extract_tb
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import AprError, ContractError
from apr_core.model.decoder import Decoder
from apr_core.model.state import StateMakers
from apr_core.model.step import Step, make_step
from apr_core.ops import Op
from apr_core.ops.binding import BackendPlugin, Binder, BoundOps, HostMatrix, Weight, resolve

ROWS = 3  # sequences of the step: other sizes are rarely 3, or half of it
HINT = "The shapes of the family's contract, or the options of its plan, are wrong."
Owner = Callable[[str], str]  # a module -> the distribution it is from


def try_step(binder: Binder, decoder: Callable[[BoundOps], Decoder], owner: Owner) -> set[str]:
    """Return the ops bound by `binder` that a decode step uses; none if it fails on zeros.

    If the backend records, what keeps it from recording such steps is put into the binder's
    report. `decoder` makes one of zeros.
    """
    trial = Trial(owner, binder.backend.captures_arithmetic)
    ops = TrialOps(trial, binder)
    whole = trial.run(decoder(ops))
    if binder.backend.has("capture"):
        for line in (*strange_ops(binder, owner), *trial.lines):
            binder.report.note(line)
    return ops.used if whole else set()


def strange_ops(binder: Binder, owner: Owner) -> Iterator[str]:
    """Yield a line per op not bound to a kernel of the backend, which cannot know what it does."""
    for bound in binder.report.bound.values():
        if bound.via == "reference":
            body = binder.table[bound.op].body
            yield f"{bound.key} runs on the reference ({owner(body.__module__)}, {_line(body)})"
        elif bound.distribution:
            line = _line(resolve(bound.target)) or bound.target  # compiled code has no lines
            yield f"{bound.key} runs on a foreign kernel ({bound.distribution}, {line})"


def _line(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code else ""


class Trial:
    """A decode step on zeros. `lines` says what in it is not an op.

    `arithmetic` allows that between ops, but not reading values or the step on the host.
    """

    def __init__(self, owner: Owner, arithmetic: bool = False) -> None:
        self.owner, self.arithmetic = owner, arithmetic
        self.lines: dict[str, None] = {}

    def note(self, what: str) -> None:
        """Note something that a recorded step may not hold."""
        name, module, place = toucher(__name__)
        self.lines[f"{what} in {name} ({self.owner(module)}, {place})"] = None

    def closed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return an op in which values may be read. It raises ContractError if shapes do not fit.

        Kernels may not check again.
        """

        def call(*args: Any, **options: Any) -> Any:
            try:
                result = function(
                    *map(_opened, args), **{k: _opened(v) for k, v in options.items()}
                )
            except (ValueError, IndexError) as error:  # what NumPy raises for shapes
                shapes = ", ".join(_shapes((args, *options.values())))
                raise ContractError(f"{name} of {shapes} fails: {error}", HINT) from error
            if isinstance(result, tuple):
                return tuple(map(self.watched, result))
            biased = name == "add" and args[1].ndim == 1
            return _watched(result, getattr(args[0] if biased else result, "weight", None), self)

        return call

    def watched(self, array: NDArray[Any]) -> Watched:
        """Return an op's result: contiguous, with its values watched."""
        return _watched(array, getattr(array, "weight", None), self)

    def step(self, *parts: tuple[int, int, int]) -> Any:
        """Return a Step of (slot, token count, first position) parts, as model code sees it."""
        return WatchedStep(make_step(parts), self)

    def run(self, decoder: Decoder) -> bool:
        """Try one step of a few sequences, one token each; return False if it fails.

        Raises ContractError if shapes do not fit.
        """
        makers, slots = StateMakers(ReferenceBackend().zeros), range(ROWS)
        states = [layer.mixer.new_state(makers) for layer in decoder.layers]
        for state in states:
            for slot in slots:
                state.open(slot)
        step, ids = self.step(*((slot, 1, 0) for slot in slots)), np.zeros(ROWS, np.int64)
        try:
            with np.errstate(all="ignore"):
                decoder.logits(decoder.hidden(self.watched(ids), step, states))
        except AprError:
            raise
        except (ValueError, IndexError) as error:
            raise ContractError(
                f"a step on zeros fails, {_line_of(error)}: {error}", HINT
            ) from error
        except Exception as error:  # e.g. from code that needs other arrays
            self.lines[f"a step on zeros ends with {type(error).__name__}: {error}"] = None
            return False
        return True


class TrialOps(BoundOps):
    """The ops on NumPy, bound as the backend's are. A composite's parts belong to the step.

    `used` are the names of all that were called.
    """

    def __init__(self, trial: Trial, binder: Binder) -> None:
        super().__init__(self._tried)
        self._trial, self._binder = trial, binder
        self._references = Binder(ReferenceBackend(), binder.table).ops
        self.used: set[str] = set()

    def _tried(self, name: str) -> Callable[..., Any]:
        getattr(self._binder.ops, name)
        self.used.add(name)
        bound = self._binder.report.bound.get((name, "*"))
        if bound and bound.via == "composite":
            return partial(self._binder.table[name].body, self)
        return self._trial.closed(name, getattr(self._references, name))


def _read(name: str) -> Callable[..., Any]:
    """Return an array method that turns values into Python's own."""

    def method(self: Unread, *args: Any) -> Any:
        self.touched(reads=True)
        return getattr(plain(self), name)(*args)

    return method


class Unread(np.ndarray[Any, Any]):
    """An array whose values were not read. Shapes, slices and other views are free."""

    def touched(self, reads: bool = False) -> None:
        """Note values about to be used outside an op; `reads`: as Python numbers. A hook."""
        raise NotImplementedError

    def derived(self, result: Any) -> Any:
        """Return the result of a computation on values. A hook."""
        return result

    def __array_finalize__(self, source: Any) -> None:
        """Report a copy, which needs values; a view needs none."""
        if isinstance(source, Unread) and self.base is None:
            source.touched()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Report arithmetic, which needs values."""
        self.touched()
        if "out" in options:
            options["out"] = tuple(map(plain, options["out"]))
        return self.derived(getattr(ufunc, method)(*map(plain, inputs), **options))

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        """Report any other NumPy function, which needs values."""
        self.touched()
        return super().__array_function__(function, types, args, options)

    def __getitem__(self, index: Any) -> Any:
        """Return a view for slices; other indices copy, which needs values."""
        part = super().__getitem__(index)
        if isinstance(part, Unread) and np.may_share_memory(plain(self), plain(part)):
            return part
        self.touched()
        return self.derived(plain(self)[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        """Report a write between ops, which no step may hold."""
        self.touched()
        super().__setitem__(index, value)

    item, tolist, tobytes = _read("item"), _read("tolist"), _read("tobytes")
    __bool__, __int__, __float__ = _read("__bool__"), _read("__int__"), _read("__float__")


def plain(x: Any) -> Any:
    """Return an array as an ordinary one; anything else unchanged."""
    return x.view(np.ndarray) if isinstance(x, Unread) else x


def toucher(*beside: str) -> tuple[str, str, str]:
    """Return who reads values: (class or function, module, "file:line").

    The innermost caller that is not in NumPy, here or in the modules `beside`.
    """
    frame = sys._getframe(1)
    while (module := str(frame.f_globals.get("__name__"))) in (__name__, *beside) or (
        module.partition(".")[0] == "numpy"
    ):
        assert frame.f_back is not None
        frame = frame.f_back
    code = frame.f_code
    names = [n for n in code.co_qualname.split(".") if not n.startswith(("<", "__"))]
    return (names or [code.co_name])[-1], module, f"{Path(code.co_filename).name}:{frame.f_lineno}"


def _watched(array: Any, weight: Weight | None, trial: Trial | None = None) -> Watched:
    result: Watched = np.asarray(array, order="C").view(Watched)
    result.trial, result.weight = trial, weight
    return result


class Watched(Unread):
    """An op's result in a trial. `weight` is the matrix whose product it is, if it is one."""

    trial: Trial | None = None
    weight: Weight | None = None

    def __array_finalize__(self, source: Any) -> None:
        self.trial = getattr(source, "trial", None)
        self.weight = getattr(source, "weight", None)
        super().__array_finalize__(source)

    def reshape(self, *shape: Any, **options: Any) -> Any:
        """Split into heads. Raises ContractError if the matrix has another number of rows.

        NumPy would make more or fewer sequences of reshape(-1, heads, size).
        """
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        w, rest = self.weight, [int(size) for size in sizes[1:]]
        if w and self.shape == (ROWS, w.rows) and sizes[0] in (-1, ROWS):
            whole = prod(size for size in rest if size != -1)
            if w.rows % whole or (-1 not in rest and w.rows != whole):
                expected = f"[{'a multiple of ' * (-1 in rest)}{whole}, {w.cols}]"
                refuse(w, expected, f"its rows are read as {rest}")
        return super().reshape(*shape, **options)

    def touched(self, reads: bool = False) -> None:
        """Note the code that uses the values."""
        if self.trial and reads:
            self.trial.note("values are read on the host")
        elif self.trial and not self.trial.arithmetic:
            self.trial.note("arithmetic outside ops")

    def derived(self, result: Any) -> Any:
        """Watch what is computed from watched values."""
        return _watched(result, self.weight, self.trial)


class WatchedStep:
    """A step whose host side must not be read: a recording would repeat the first step's."""

    def __init__(self, step: Step, trial: Trial) -> None:
        self.step, self._trial = step, trial
        self.positions, self.n_rows = trial.watched(step.positions), step.n_rows

    def __getattr__(self, name: str) -> Any:
        self._trial.note(f"step.{name} is read on the host")
        return getattr(self.step, name)


def _opened(argument: Any) -> Any:
    """Return an argument whose values an op may read."""
    if isinstance(argument, tuple):
        return tuple(map(_opened, argument))
    return argument.step if isinstance(argument, WatchedStep) else plain(argument)


def _shapes(arguments: Any) -> Iterator[str]:
    """Yield the shapes of an op's arguments, and of which matrices they are products."""
    for each in arguments:
        if isinstance(each, tuple):
            yield from _shapes(each)
        elif isinstance(each, Weight):
            yield f"{each.name} [{each.rows}, {each.cols}]"
        elif isinstance(each, np.ndarray):
            weight, name = getattr(each, "weight", None), getattr(each, "name", "")
            yield f"{f'the output of {weight.name}' if weight else name} {list(each.shape)}".strip()


def _line_of(error: BaseException) -> str:
    """Return where an error comes from outside of NumPy and this module, as "file:line"."""
    frames = [f for f in extract_tb(error.__traceback__) if "numpy" not in Path(f.filename).parts]
    last = [f for f in frames if f.filename != __file__][-1]
    return f"{Path(last.filename).name}:{last.lineno}"


def refuse(w: Weight, expected: str, why: str) -> NoReturn:
    """Raise the error for a matrix of another shape than its products need."""
    shape = f"[{w.rows}, {w.cols}]"
    raise ContractError(f"{w.name} has shape {shape}, expected {expected}: {why}", HINT)


def shapes_only(name: str, shape: tuple[int, ...], brought: Mapping[str, Op]) -> Weight:
    """Return a matrix without values: its products and its rows are zeros.

    Ops that a plugin brings run on one matrix of zeros in the place of each of a stack.
    """
    zeros = np.broadcast_to(np.zeros(shape[-2:], np.float32), shape) if brought else None
    weight = Weight(name, "", shape, zeros)
    for use, op in brought.items():
        setattr(weight, use, partial(op.body, np))
    weight.linear = _product
    weight.embed = lambda ids, w: _watched(np.zeros((len(ids), w.cols), np.float32), w)
    return weight


class Named(np.ndarray[Any, Any]):
    """The zeros of a tensor that is no matrix. Views and results have no name."""

    name = ""


def named(name: str, shape: tuple[int, ...]) -> Named:
    """Return zeros that errors call by name."""
    zeros = np.zeros(shape, np.float32).view(Named)
    zeros.name = name
    return zeros


def _product(x: NDArray[Any], w: Weight) -> Watched:
    if x.shape[-1] != w.cols:
        why = f"it is multiplied with rows of {x.shape[-1]} values"
        refuse(w, f"[{w.rows}, {x.shape[-1]}]", why)
    return _watched(np.zeros((*x.shape[:-1], w.rows), np.float32), w)


class ReferenceBackend(BackendPlugin):
    """NumPy and the references, without a kernel. It copies its inputs: none changes through it."""

    name = "reference"
    xp: Any = np

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads

    def describe(self) -> str:
        """Return a line about the backend."""
        return "reference: NumPy, no kernels"

    def zeros(self, shape: tuple[int, ...], dtype: str = "f32") -> NDArray[Any]:
        """Return zeros."""
        return np.zeros(shape, np.float16 if dtype == "f16" else np.float32)

    def upload(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a copy."""
        return np.array(array)

    upload_matrix = upload

    def upload_packed(self, matrix: HostMatrix) -> NDArray[np.uint8]:
        """Return the packed bytes."""
        return matrix.raw

    def download(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array."""
        return array
