"""What a hook returns: frozen records that say what a plugin provides, without importing it.

Every record has `name`, `target` ("module:Attr", imported on first use), a one-line `summary` and
the `api` number it was written for. Further fields are the facts needed before an import.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

StateKind = Literal["kv", "recurrent", "window", "none"]


@dataclass(frozen=True, slots=True)
class Declaration:
    """Common part of all declarations."""

    name: str
    target: str
    _: KW_ONLY
    summary: str = ""
    api: int = 1

    kind: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class Family(Declaration):
    """A model family. `architectures` and `model_types` are matched against config.json."""

    _: KW_ONLY
    architectures: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()  # the mixers its plan names

    kind: ClassVar[str] = "family"


@dataclass(frozen=True, slots=True)
class Attention(Declaration):
    """An attention variant. `brings` are (op name, target) pairs for ops of its own.

    `cases` is "module:function" -> list of apr_core.testing.OpCase for these ops: every backend's
    conformance kit runs them.
    """

    _: KW_ONLY
    state: StateKind = "kv"
    ops: tuple[str, ...] = ()
    brings: tuple[tuple[str, str], ...] = ()
    cases: str = ""

    kind: ClassVar[str] = "attention"


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers inside a block, from byte `offset` on: one for each group, or one for the block."""

    offset: int
    dtype: Literal["f32", "f16", "bf16", "u8", "i8"]
    per_block: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """Blocks that are `scale * level + minimum`: backends have a kernel for all of these.

    `scale` and `minimum` are products. A level is the code less `zero`, or `codebook[code]`. Codes
    of 4 bits stand as `pairs` (byte i holds values 2i, low, and 2i + 1) or as `halves` (16 bytes
    hold 32 values: low nibbles the first 16). `group` is a multiple of 32. See apr_core.layouts.
    """

    group: int
    codes: int  # byte offset
    bits: Literal[4, 8]
    scale: tuple[Numbers, ...]
    minimum: tuple[Numbers, ...] = ()
    order: Literal["pairs", "halves"] = "pairs"
    zero: int = 0
    signed: bool = False  # codes of 8 bits are int8
    codebook: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Quantizer(Declaration):
    """A block number format: `block` values become `bytes_per_block` bytes.

    `dtype_id` is the APR v2 id if the format has one; others get ids from 192 up in each file.
    With a `layout` it needs no kernels of its own to run at speed.
    """

    _: KW_ONLY
    block: int = 0
    bytes_per_block: int = 0
    dtype_id: int | None = None
    layout: Layout | None = None

    kind: ClassVar[str] = "quantizer"


@dataclass(frozen=True, slots=True)
class Recipe(Declaration):
    """A choice of format per tensor class. `formats` are the quantizers it may pick."""

    _: KW_ONLY
    formats: tuple[str, ...] = ()

    kind: ClassVar[str] = "recipe"


@dataclass(frozen=True, slots=True)
class Backend(Declaration):
    """A device. `requires` are modules that must be importable; `probe` scores the machine."""

    _: KW_ONLY
    requires: tuple[str, ...] = ()
    probe: str = ""  # "module:function" -> (score, reason); score 0 means it cannot run here

    kind: ClassVar[str] = "backend"


@dataclass(frozen=True, slots=True)
class Kernel(Declaration):
    """An op for one backend and one weight format (`*`: any, or the op has no weight)."""

    _: KW_ONLY
    backend: str = ""
    op: str = ""
    weight: str = "*"

    kind: ClassVar[str] = "kernel"


@dataclass(frozen=True, slots=True)
class Source(Declaration):
    """A URL scheme; the target is `fetch(url, *, progress=None, force=False) -> Path`.

    `progress` is called with a file's name and the bytes that are there. The target may have an
    attribute `example_url`: a small checkpoint that its conformance kit fetches.
    """

    kind: ClassVar[str] = "source"


@dataclass(frozen=True, slots=True)
class Exporter(Declaration):
    """A file format to export to.

    The target is `export(file, out, *, progress=None) -> mapping`: an open AprFile, the path to
    write, and a Progress to report bytes to. It writes beside `out` and renames, and returns
    `path`, `tensors` (how many), `bytes`, `left_out` (names) and `warnings` (sentences).
    """

    kind: ClassVar[str] = "exporter"


@dataclass(frozen=True, slots=True)
class Command(Declaration):
    """A command of `apr`; the target is a click command."""

    kind: ClassVar[str] = "command"


KINDS: dict[str, type[Declaration]] = {
    cls.kind: cls
    for cls in (
        Family, Attention, Quantizer, Recipe, Backend, Kernel, Source, Exporter, Command
    )
}  # fmt: skip

HOOKS: dict[str, str] = {
    "apr_families": "family",
    "apr_attention": "attention",
    "apr_quantizers": "quantizer",
    "apr_recipes": "recipe",
    "apr_backends": "backend",
    "apr_kernels": "kernel",
    "apr_sources": "source",
    "apr_exporters": "exporter",
    "apr_commands": "command",
}
