"""Frozen records that hooks return: what a plugin provides, known without importing it.

Every record has `name`, `target` ("module:Attr", imported on first use), a one-line `summary` and
the `api` number it was written for. Further fields are the facts needed before an import.
"""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any, ClassVar, Literal, NoReturn

from apr_core.errors import PluginError

API_VERSION = 1  # +1 only when an existing plugin would break
SUPPORTED_APIS = frozenset({1})
RUN = 32  # the group size of a layout is a multiple of this
WIDTH = {"f32": 4, "f16": 2, "bf16": 2, "u8": 1, "i8": 1}  # bytes per number in a layout
StateKind = Literal["kv", "recurrent", "none"]


@dataclass(frozen=True, slots=True)
class Declaration:
    """Common part of all declarations."""

    name: str  # what users type; 1 to 100 printable ASCII characters, no spaces or quotes
    target: str  # "module:Attr", imported when it is used for the first time
    _: KW_ONLY
    summary: str = ""  # one line, for lists
    api: int = 1  # the API number it was written for: see API_VERSION

    kind: ClassVar[str] = ""

    @property
    def full_name(self) -> str:
        """The name users type where it is unambiguous, after its group if it has one."""
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Family(Declaration):
    """A model family. `architectures` and `model_types` are matched against config.json.

    Family("mine", "apr_mine.family:Mine", summary="Mine 1 and 2",
           architectures=("MineForCausalLM",))
    """

    architectures: tuple[str, ...] = ()  # of config.json
    model_types: tuple[str, ...] = ()  # where no installed family has the architecture

    kind: ClassVar[str] = "family"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention(Declaration):
    """An attention variant (mixer). Every backend's conformance kit runs the cases of its ops.

    Attention("retention", "apr_retnet.mixer:Retention", summary="decays with distance",
              state="recurrent", brings=(("retain", "apr_retnet.ops:retain"),))
    """

    state: StateKind = "kv"  # the state it keeps of a sequence between steps
    brings: tuple[tuple[str, str], ...] = ()  # (op name, "module:op") of its own ops
    cases: str = ""  # "module:function" -> list of apr_devkit.kits.OpCase for the ops it brings

    kind: ClassVar[str] = "attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp(Declaration):
    """A feed-forward variant. Every backend's conformance kit runs the cases of its ops.

    Mlp("reglu", "apr_reglu.mlp:ReGLU", summary="gated by relu",
        brings=(("reglu", "apr_reglu.ops:reglu"),))
    """

    brings: tuple[tuple[str, str], ...] = ()  # (op name, "module:op") of its own ops
    cases: str = ""  # "module:function" -> list of apr_devkit.kits.OpCase for the ops it brings

    kind: ClassVar[str] = "mlp"


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers inside a block, from byte `offset` on: one per group, or one for the whole block."""

    offset: int  # bytes from the start of the block
    dtype: Literal["f32", "f16", "bf16", "u8", "i8"]  # little-endian
    per_block: bool = False  # one number for the whole block, not one for each group


@dataclass(frozen=True, slots=True)
class Layout:
    """Blocks that are `scale * level + minimum`: backends have a kernel for all of these.

    `scale` and `minimum` are products. A level is the code less `zero`, or `codebook[code]`. Codes
    of 4 bits stand as `pairs` (byte i holds values 2i, low, and 2i + 1) or as `halves` (16 bytes
    hold 32 values: low nibbles the first 16). apr_core.ops.layouts reads them.
    """

    group: int  # values that share a scale: a multiple of 32 that divides the block
    codes: int  # where the codes begin, in bytes from the start of the block
    bits: Literal[4, 8]  # of a code
    scale: tuple[Numbers, ...]  # numbers whose product is the scale
    minimum: tuple[Numbers, ...] = ()  # numbers whose product is the minimum; none: 0
    order: Literal["pairs", "halves"] = "pairs"  # how two codes of 4 bits share a byte
    zero: int = 0  # a level is the code less this
    signed: bool = False  # codes of 8 bits are int8
    codebook: tuple[float, ...] = ()  # 16 levels, for codes of 4 bits
    high: int | None = None  # where fifth bits begin: bit i of each 32 belongs to value i

    def check(self, block: int, nbytes: int) -> None:
        """Raise PluginError unless the layout fits blocks of `block` values in `nbytes` bytes."""
        if self.group % RUN or block % self.group:
            _refuse(f"group {self.group} must be a multiple of {RUN} that divides {block}")
        if self.codes + block * self.bits // 8 > nbytes or self.codes < 0:
            _refuse(f"{block} codes of {self.bits} bits from byte {self.codes} exceed {nbytes}")
        for numbers in (*self.scale, *self.minimum):
            count = 1 if numbers.per_block else block // self.group
            if numbers.offset < 0 or numbers.offset + count * WIDTH[numbers.dtype] > nbytes:
                _refuse(f"{numbers} exceeds the block of {nbytes} bytes")
        if self.codebook and (self.bits != 4 or len(self.codebook) != 16):
            _refuse("a codebook has 16 levels for codes of 4 bits")
        if self.high is not None:
            fits = 0 <= self.high <= nbytes - block // 8
            if not fits or (self.bits, self.order, self.codebook) != (4, "halves", ()):
                _refuse(f"fifth bits at {self.high} need codes of 4 bits in halves, no codebook")
        if not self.scale:
            _refuse("there is no scale")


def _refuse(reason: str) -> NoReturn:
    raise PluginError(f"a quantizer's layout is impossible: {reason}", "Correct its declaration.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer(Declaration):
    """A block number format: `block` values become `bytes_per_block` bytes.

    `dtype_id` is the APR v2 id if the format has one; others get ids from 192 up in each file.
    With a `layout` it needs no kernels of its own to run at speed.

    Quantizer("mine4", "apr_mine.codec:Mine4", summary="4.25 bits: 64 with a scale",
              block=64, bytes_per_block=34)
    """

    block: int = 0  # values in a block
    bytes_per_block: int = 0  # scales and everything else included
    dtype_id: int | None = None  # None unless APR v2 itself gives the format an id
    layout: Layout | None = None  # where the numbers of a block are, for generic kernels

    kind: ClassVar[str] = "quantizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Declaration):
    """A choice of format per tensor class. `formats` are the quantizers it may pick.

    Recipe("mine4", "apr_mine.recipes:mine4", summary="all matrices mine4",
           formats=("mine4",))
    """

    formats: tuple[str, ...] = ()  # quantizers it may answer with; floats need no listing
    recommended: bool = False  # suggested where no recipe was asked for

    kind: ClassVar[str] = "recipe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend(Declaration):
    """A device. `requires` names modules that must be importable; `probe` scores this machine.

    Lists ask the probe too, so it should be quick and import nothing heavy.

    Backend("npu", "apr_npu.backend:Npu", summary="the NPU of a phone",
            requires=("npu_runtime",), probe="apr_npu.probe:probe")
    """

    requires: tuple[str, ...] = ()  # modules that must be installed; found, not imported
    probe: str = ""  # "module:function" -> (score, reason); score 0 means it cannot run here

    kind: ClassVar[str] = "backend"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel(Declaration):
    """An implementation of an op for one backend and one weight format, or `*` for any.

    Kernel("npu/linear/mine4", "apr_mine.kernels:linear", summary="mine4 on the NPU",
           backend="npu", op="linear", weight="mine4")
    """

    backend: str = ""  # the name of the backend it is for
    op: str = ""  # the name of the op it computes
    weight: str = "*"  # a quantizer's name, f32, "layout" for all declared layouts, or *

    kind: ClassVar[str] = "kernel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source(Declaration):
    """A URL scheme; the target is `fetch(url, *, progress=None, force=False) -> Path`.

    `progress` is called with what is fetched, its bytes so far and all bytes; without it nothing is
    downloaded. The target may have an attribute `example_url`: a small checkpoint that its kit
    fetches. With `suffixes` it is no scheme but a file format: `open(path) -> Checkpoint`.

    Source("s3", "apr_s3.source:fetch", summary="S3 buckets")
    """

    suffixes: tuple[str, ...] = ()  # of files that it opens, such as ".gguf"

    kind: ClassVar[str] = "source"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter(Declaration):
    """A file format to export to.

    The target is `export(file, out, *, progress=None) -> mapping`: an open AprFile, the path to
    write, and a Progress to report bytes to. It writes beside `out` and renames, and returns
    `path`, `tensors` (how many), `bytes`, `skipped` (names) and `warnings` (sentences).

    Exporter("npz", "apr_npz.export:export", summary="NumPy archives")
    """

    kind: ClassVar[str] = "exporter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Declaration):
    """A command of `apr`; the target is a click command.

    With a `group`, as "plugins", it is a subcommand: `apr plugins NAME`. `settings` are the keys of
    the section of the configuration file that is called like the command, and their types.

    Command("merge", "apr_merge.cli:merge", summary="merge models")
    """

    group: str = ""  # a command of the core that it belongs to; none: `apr NAME`
    settings: tuple[tuple[str, str], ...] = ()  # (key, "str", "int", "float", "bool" or "list")

    kind: ClassVar[str] = "command"

    @property
    def full_name(self) -> str:
        """The command's name after its group, if it has one."""
        return f"{self.group} {self.name}".strip()


HOOKS: dict[str, type[Declaration]] = {
    "apr_families": Family,
    "apr_attention": Attention,
    "apr_mlps": Mlp,
    "apr_quantizers": Quantizer,
    "apr_recipes": Recipe,
    "apr_backends": Backend,
    "apr_kernels": Kernel,
    "apr_sources": Source,
    "apr_exporters": Exporter,
    "apr_commands": Command,
}
KINDS = {cls.kind: cls for cls in HOOKS.values()}
NESTED = {"layout": Layout, "scale": Numbers, "minimum": Numbers}  # fields that are records


def record_of(declaration: Declaration) -> dict[str, Any]:
    """Return a declaration and its kind for JSON. Raises TypeError for other field types."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(declaration), allow_nan=False))
    return {"kind": declaration.kind, **plain}


def from_record(record: dict[str, Any]) -> Declaration:
    """Return a record's declaration. Raises KeyError or TypeError for anything else."""
    values = dict(record)
    cls = KINDS[values.pop("kind")]
    return cls(**{key: _value(key, v) for key, v in values.items()})


def _value(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(key, v) for v in value)
    if isinstance(value, dict):
        return NESTED[key](**{k: _value(k, v) for k, v in value.items()})
    return value
