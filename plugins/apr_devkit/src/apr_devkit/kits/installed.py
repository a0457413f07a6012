"""What is installed that a backend or a kernel can be checked with: ops, their cases, formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from apr_core.declarations import Quantizer
from apr_core.errors import AprError
from apr_core.ops import CORE_OPS, Op
from apr_core.ops.binding import GENERIC, BlockLayout
from apr_core.registry import Owned, Registry
from apr_devkit.kits.cases import OpCase
from apr_devkit.kits.core_cases import core_cases
from apr_devkit.kits.packed_cases import FLOAT_FORMATS, Pack, in_floats, in_format

PACKABLE = ("linear", "embed")  # the ops that see packed weights


def reader(op: str) -> str:
    """The op whose kernel reads the weights of a product op: `mlp` is made of `linear`."""
    return "embed" if op == "embed" else "linear"


@dataclass(frozen=True, slots=True)
class Format:
    """A weight format that can be made here. `generic`: it declares a layout."""

    pack: Pack
    generic: bool = False

    def keys(self, op: str, name: str) -> list[tuple[str, str]]:
        """Where a kernel for this op and the format of that name may stand in a table."""
        return [(op, name), (op, "*"), *([(op, GENERIC)] if self.generic else [])]


@dataclass(slots=True)
class Installed:
    """Ops that plugins bring, cases of all ops, formats by name; `missing` says what is not."""

    ops: dict[str, Op] = field(default_factory=dict)
    cases: list[OpCase] = field(default_factory=core_cases)
    formats: dict[str, Format] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, registry: Registry) -> Installed:
        """Everything usable; a plugin that is not is somebody else's problem, and named."""
        found = cls()
        for owned in registry.declarations("attention"):
            found._attempt(owned, partial(found._attention, owned, registry))
        found.formats = {name: Format(in_floats(name)) for name in FLOAT_FORMATS}
        for owned in registry.declarations("quantizer"):
            found._attempt(owned, partial(found._quantizer, owned, registry))
        return found

    def _attempt(self, owned: Owned, take: Callable[[], None]) -> None:
        try:
            take()
        except AprError as error:
            self.missing.append(f"{owned.qualified}: {error.message}")

    def _attention(self, owned: Owned, registry: Registry) -> None:
        for name, target in owned.declaration.brings:
            self.ops[name] = registry.load_target(target, owned.distribution)
        if owned.declaration.cases:
            self.cases += registry.load_target(owned.declaration.cases, owned.distribution)()

    def _quantizer(self, owned: Owned, registry: Registry) -> None:
        declared: Quantizer = owned.declaration
        codec: Any = registry.make("quantizer", declared.name)
        layout = None
        if declared.layout:
            layout = BlockLayout(declared.layout, declared.block, declared.bytes_per_block)
        pack = in_format(declared.name, codec.encode, codec.decode, layout)
        self.formats[declared.name] = Format(pack, layout is not None)

    def op(self, name: str) -> Op | None:
        """The op of that name, if it is known here."""
        return self.ops.get(name) or CORE_OPS.get(name)

    def cases_of(self, name: str) -> list[OpCase]:
        """The op's cases, with dense weights."""
        return [case for case in self.cases if case.op == name]
