"""Binds each (op, weight format) once, at load: to a kernel, else composite, else reference.

Knows backends only by the base class below. The result is plain attributes, so a forward pass makes
no look-ups. A report says what was bound, so that no slow path is silent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from apr_core.declarations import Layout
from apr_core.errors import BackendError
from apr_core.ops import CORE_OPS, Op

Array = Any
StepFunction = Callable[[Array, Any], Array]  # (ids [T], step) -> logits
Decode = Callable[[NDArray[np.uint8], int], NDArray[np.float32]]  # (rows u8 [R, bytes], columns)
DENSE = "f32"  # the format of a weight that no kernel reads packed
GENERIC = "layout"  # the format under which a backend registers its kernel for declared layouts


class BoundOps:
    """The ops as a backend runs them, one attribute each, bound when first used.

    A trial on zeros uses a model's ops before its weights are uploaded.
    """

    def __init__(self, bind: Callable[[str], Callable[..., Any]]) -> None:
        self._bind = bind

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):  # looked up by copies and inspectors
            raise AttributeError(name)
        function = self._bind(name)
        setattr(self, name, function)
        return function


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """A declared layout and the size of its blocks: `block` values in `nbytes` bytes."""

    layout: Layout
    block: int
    nbytes: int


@dataclass(eq=False, repr=False)
class Weight:
    """A matrix on a backend, [rows, cols]. `data` is packed bytes or a dense array.

    A stack of matrices has shape [.., rows, cols]; `rows` and `data` count the rows of all.
    `linear`, `embed` and other matrix ops are bound here and not on the ops, because they depend on
    the format.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    data: Array
    decode: Decode | None = None
    row_bytes: int = 0  # in the file, if `decode` is given
    layout: BlockLayout | None = None  # if a generic kernel reads the blocks
    linear: Callable[[Array, Weight], Array] | None = None
    embed: Callable[[Array, Weight], Array] | None = None
    prepared: Any = None  # what a backend's kernels keep with the weight
    rows: int = field(init=False)
    cols: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows, self.cols = prod(self.shape[:-1]), self.shape[-1]


@dataclass(frozen=True, slots=True)
class HostMatrix:
    """A matrix as stored: `raw` u8 [rows, row bytes], and how to decode its rows.

    A stack of matrices has shape [.., rows, cols], and `raw` the rows of all.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]
    decode: Decode
    layout: BlockLayout | None = None

    def dense(self) -> NDArray[np.float32]:
        """Return the whole matrix in float32 [rows, cols]."""
        return self.decode(self.raw, self.shape[-1])


@dataclass(frozen=True, slots=True)
class SamplingMetadata:
    """The sampling parameters and the random number that decide a sequence's next token.

    `temperature` 0 takes the likeliest, of equal ones the lowest id; `top_k` 0, `top_p` 1 and
    `min_p` 0 switch a step off. `uniform` in [0, 1) decides: the token is the one where the running
    sum of the weights passes that fraction of their sum. Ids from `valid` on are never taken.
    """

    valid: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float = 0.0


class BackendPlugin:
    """Base class of a backend: a `Backend` declaration's target, called with `threads=`.

    Methods with a body here are optional, the others are required.
    """

    name: str  # as the declaration has it
    xp: Any  # array namespace that references run on
    kernels: Mapping[tuple[str, str], str] = {}  # (op, weight format or "*") -> "module:function"
    kv_types: tuple[Literal["f32", "f16", "q8"], ...] = ("f32", "f16")  # of keys and values
    bitwise_rows = False  # a row's result has the same bits alone and in any batch
    captures_arithmetic = False  # `capture` remembers arithmetic on its arrays outside ops, too

    @classmethod
    def has(cls, method: str) -> bool:
        """Return True if the backend overrides an optional method."""
        return getattr(cls, method) is not getattr(BackendPlugin, method)

    def describe(self) -> str:
        """Return one line about the device and its features."""
        raise NotImplementedError

    def zeros(self, shape: tuple[int, ...], dtype: str = "f32") -> Array:
        """Return zeros on the device, in `f32` or `f16`."""
        raise NotImplementedError

    def upload(self, array: NDArray[Any]) -> Array:
        """Return a dense array (float32 or integers) on the device."""
        raise NotImplementedError

    def upload_matrix(self, array: NDArray[np.float32]) -> Array:
        """Return a dense weight for `linear` and `embed`; kernels may want its rows padded."""
        raise NotImplementedError

    def upload_packed(self, matrix: HostMatrix) -> Array:
        """Return packed bytes for this backend's kernels, in place where that is possible."""
        raise NotImplementedError

    def download(self, array: Array) -> NDArray[Any]:
        """Return a device array as a NumPy array."""
        raise NotImplementedError

    def bind(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """Return a kernel as a model calls it, for kernels that depend on this object."""
        return kernel

    def capture(self, step: StepFunction, note: Callable[[str], None]) -> StepFunction:
        """Return a function with the results of `step`, from token ids and a Step to logits.

        It may record what the ops did and replay it for steps of the same shape. It is called only
        if a step is nothing but ops, all bound to the backend's own kernels; `note(line)` reports
        what still keeps it from recording.
        """
        return step

    def states(self, kv_type: Any, max_len: int | None = None) -> Any:
        """Return makers of states that the backend keeps in its own way; None: the core's."""
        return None

    def sample(
        self, logits: Array, sampling: Sequence[SamplingMetadata | None]
    ) -> list[int | None]:
        """Sample one token from each row of logits [rows, vocab], on the device.

        The same token as `generate.sampling.sample` takes on the host. None stands for a row
        without metadata, or one left to the host, as rows must be whose valid ids have a NaN,
        +inf or nothing but -inf.
        """
        return [None] * len(sampling)

    def capacity(self) -> int | None:
        """Return the free bytes of a device with memory of its own; None: memory is not planned.

        With a number, a model that does not fit is refused before anything is uploaded, and
        sequences share what is left; then `matrix_bytes` is needed.
        """
        return None

    def matrix_bytes(
        self, format: str, shape: tuple[int, int], layout: BlockLayout | None = None
    ) -> int:
        """Return the bytes an uploaded matrix takes on the device. `f32` is a dense array."""
        raise NotImplementedError

    def loading(self) -> AbstractContextManager[None]:
        """Return a context for one model's upload: buffers may be kept until it ends."""
        return nullcontext()

    def caches(self) -> list[tuple[str, str]]:
        """Return what it keeps on disk, for `apr doctor`: (label, folder)."""
        return []

    def memory(self) -> int | None:
        """Return the bytes its arrays take, for the conformance kit; None if unknown."""
        return None


@dataclass(frozen=True, slots=True)
class Bound:
    """The binding of one (op, weight format). `via` is kernel, composite or reference."""

    op: str
    format: str
    via: str
    target: str
    distribution: str = ""

    @property
    def key(self) -> str:
        """The op, with its weight's format if it has one."""
        return self.op if self.format == "*" else f"{self.op}[{self.format}]"


@dataclass(slots=True)
class BindReport:
    """Report of what runs where.

    `expanded` counts bytes of weights that had to be decoded; `unrecorded` says what keeps decode
    steps from being recorded on a backend that can record.
    """

    device: str
    bound: dict[tuple[str, str], Bound] = field(default_factory=dict)
    expanded: dict[str, tuple[int, int]] = field(default_factory=dict)  # format -> (from, to) bytes
    weights: Counter[tuple[str, str]] = field(default_factory=Counter)
    unrecorded: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Add a line on what keeps decode steps from being recorded."""
        if line not in self.unrecorded:
            self.unrecorded.append(line)

    @property
    def fallbacks(self) -> list[str]:
        """Lines on what runs slower or larger than it should; empty when all is well."""
        slow = [
            f"{b.key} runs on the reference" for b in self.bound.values() if b.via == "reference"
        ]
        big = [
            f"{name} weights are decoded: {after / 2**20:.0f} MiB instead of {before / 2**20:.0f}"
            for name, (before, after) in self.expanded.items()
        ]
        return slow + big + [f"steps are not recorded: {line}" for line in self.unrecorded]

    def refuse_fallbacks(self) -> None:
        """Raise BackendError if there are fallbacks."""
        if self.fallbacks:
            raise BackendError(
                "`strict` refuses: " + "; ".join(self.fallbacks),
                "Install a plugin with the missing kernel, upgrade those that are named, or run "
                "without `strict`.",
            )

    def lines(self) -> list[str]:
        """Return the report as `apr run -v` prints it."""
        rows = [self.device]
        for key, bound in sorted(self.bound.items()):
            count = f" x{self.weights[key]}" if self.weights[key] else ""
            origin = f" ({bound.distribution})" if bound.distribution else ""
            rows.append(f"  {bound.key + count:<24} {bound.via:<10} {bound.target}{origin}")
        return rows + [f"! {line}" for line in self.fallbacks]

    def as_dict(self) -> dict[str, str]:
        """Return the bindings, such as {"linear[f32]": "module:function"}."""
        return {bound.key: bound.target for bound in self.bound.values()}


@dataclass(frozen=True, slots=True)
class ForeignKernel:
    """A kernel that another distribution brings for this backend."""

    target: str
    distribution: str


class Binder:
    """Binds ops and weights to one backend and keeps the report."""

    def __init__(
        self,
        backend: BackendPlugin,
        extra_ops: Mapping[str, Op],
        foreign: Mapping[tuple[str, str], ForeignKernel] | None = None,
    ) -> None:
        self.backend = backend
        self.table = {**CORE_OPS, **extra_ops}
        self.foreign = dict(foreign or {})
        self.report = BindReport(backend.describe())
        self.ops = BoundOps(self._bind_op)

    def _bind_op(self, name: str) -> Callable[..., Any]:
        """Bind an op to a kernel, composite or reference; weights bind those that read them.

        Raises BackendError if nothing defines the op.
        """
        if name not in self.table:
            raise BackendError(
                f"op {name!r} has no definition",
                "A mixer or mlp that brings an op names it in its declaration's `brings`.",
            )
        if self.table[name].reads_weight:
            return lambda *args: getattr(args[-1], name)(*args)
        return self._bound(name)

    def expect(
        self,
        format: str,
        layout: BlockLayout | None,
        shape: tuple[int, ...],
        nbytes: int,
        uses: Iterable[str],
    ) -> None:
        """Bind the ops in `uses` for a matrix before it is uploaded, and count it in the report."""
        uses = tuple(uses)
        uploaded = self.kept_as(format, layout, uses)
        if uploaded != format:
            before, after = self.report.expanded.get(format, (0, 0))
            self.report.expanded[format] = before + nbytes, after + 4 * prod(shape)
        for name in uses:
            self._bound(name, uploaded, layout is not None and uploaded == format)
            self.report.weights[name, uploaded] += 1

    def weight(self, matrix: HostMatrix, uses: Iterable[str]) -> Weight:
        """Upload a matrix for the ops in `uses`, packed if all of them have a kernel for it."""
        uses = tuple(uses)
        if self.kept_as(matrix.format, matrix.layout, uses) == DENSE:
            dense = self.backend.upload_matrix(matrix.dense())
            weight = Weight(matrix.name, DENSE, matrix.shape, dense)
        else:
            packed, row_bytes = self.backend.upload_packed(matrix), matrix.raw.shape[1]
            stored = (packed, matrix.decode, row_bytes, matrix.layout)
            weight = Weight(matrix.name, matrix.format, matrix.shape, *stored)
        for name in uses:
            setattr(weight, name, self._bound(name, weight.format, weight.layout is not None))
        return weight

    def kept_as(self, format: str, layout: BlockLayout | None, uses: Iterable[str]) -> str:
        """Return a matrix's format on the backend: its own, or DENSE if some use has no kernel."""
        for use in uses:
            keys = self._keys(use, format, layout is not None)
            if not any(key in self.foreign or key in self.backend.kernels for key in keys):
                return DENSE
        return format

    def _keys(self, name: str, format: str, generic: bool) -> list[tuple[str, str]]:
        """Return the keys to try, in order: the format, any format, declared layouts."""
        return [(name, format), (name, "*"), *([(name, GENERIC)] if generic else [])]

    def _bound(self, name: str, format: str = "*", generic: bool = False) -> Callable[..., Any]:
        """Bind an op for weights of a format, and note in the report to what.

        The exact format's kernel comes first, and foreign kernels before the backend's.
        """
        for key in self._keys(name, format, generic):
            foreign = self.foreign.get(key)
            target = foreign.target if foreign else self.backend.kernels.get(key)
            if target:
                function = resolve(target) if foreign else self.backend.bind(resolve(target))
                origin = foreign.distribution if foreign else ""
                self.report.bound[name, format] = Bound(name, format, "kernel", target, origin)
                return function
        entry, body = self.table[name], self.table[name].body
        target = f"{body.__module__}:{body.__qualname__}"
        via = "composite" if entry.is_composite else "reference"
        self.report.bound[name, format] = Bound(name, format, via, target)
        return partial(body, self.ops if entry.is_composite else self.backend.xp)


def resolve(target: str) -> Callable[..., Any]:
    """Return a kernel from "module:function". Raises BackendError."""
    module, _, attribute = target.partition(":")
    try:
        function: Callable[..., Any] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BackendError(
            f"kernel {target!r} cannot be loaded: {error}",
            "Reinstall the distribution that brings it, or disable it.",
        ) from error
    return function
