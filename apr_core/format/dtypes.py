"""Number formats by name: APR v2 ids, block sizes, byte counts. Knows no encoding."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from apr_core.errors import FormatError
from apr_core.messages import index

FIRST_FILE_ID = 192  # ids from here up are defined by the file's own `apr.formats` table
TABLE = "apr.formats"
NAME = re.compile(r"[\w.+-]{1,64}", re.ASCII)
DISTRIBUTION = re.compile(r"([A-Za-z0-9]([\w.-]{0,98}[A-Za-z0-9])?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class FormatSpec:
    """A number format: `block` values take `bytes_per_block` bytes. Native types have block 1.

    `dtype_id` None asks the writer for a free id of the file it writes.
    """

    name: str
    dtype_id: int | None
    block: int
    bytes_per_block: int
    distribution: str = ""  # the distribution that decodes it, "" for native types

    def row_bytes(self, cols: int) -> int:
        """Return the bytes of a row, padded to whole blocks."""
        return -(-cols // self.block) * self.bytes_per_block


NATIVE: dict[str, FormatSpec] = {
    spec.name: spec
    for spec in (
        FormatSpec("f32", 0, 1, 4),
        FormatSpec("f16", 1, 1, 2),
        FormatSpec("bf16", 30, 1, 2),
        FormatSpec("f64", 3, 1, 8),
        FormatSpec("i32", 4, 1, 4),
        FormatSpec("i64", 5, 1, 8),
        FormatSpec("i8", 6, 1, 1),
        FormatSpec("u8", 7, 1, 1),
    )
}

# Block formats whose ids APR v2 itself fixes, so that files of other writers can be measured.
SPECIFIED: dict[int, FormatSpec] = {
    row["id"]: FormatSpec(row["name"], row["id"], row["block"], row["bytes_per_block"])
    for row in index()["formats"]
}

# Read, never written. Both run flat over a tensor of any shape; apr_q8 is one block as long as
# the tensor, so its real sizes are those of `legacy_spec`.
LEGACY_IDS = {128: "apr_q4", 129: "apr_q8"}
LEGACY = frozenset(LEGACY_IDS.values())


def legacy_spec(dtype_id: int, elements: int) -> FormatSpec:
    """Return the spec of a legacy tensor with that many elements."""
    if dtype_id == 128:
        return FormatSpec("apr_q4", 128, 32, 18)
    return FormatSpec("apr_q8", 129, max(1, elements), 4 + elements)


def tensor_nbytes(spec: FormatSpec, shape: Sequence[int]) -> int:
    """Return a tensor's bytes: 2-D tensors pad each row to whole blocks, others are flat."""
    if spec.name == "apr_q8":
        return 4 + prod(shape)
    if len(shape) == 2 and spec.name not in LEGACY:
        return shape[0] * spec.row_bytes(shape[1])
    return spec.row_bytes(prod(shape))


def number_formats(specs: Iterable[FormatSpec]) -> dict[str, FormatSpec]:
    """Return the formats by name, all with an id: missing ones get 192, 193, .. by name.

    Raises FormatError if two formats claim one name or one id, or an id APR v2 gives to another.
    """
    by_name: dict[str, FormatSpec] = {}
    for spec in specs:
        known = by_name.setdefault(spec.name, spec)
        if known != spec:
            raise FormatError(f"two different formats are called {spec.name!r}")
    taken = {spec.dtype_id for spec in by_name.values()}
    free = (i for i in range(FIRST_FILE_ID, 256) if i not in taken)
    owners: dict[int, str] = {}
    for name in sorted(by_name):
        spec = by_name[name]
        if spec.dtype_id is None:
            dtype_id = next(free, None)
            if dtype_id is None:
                raise FormatError("a file holds at most 64 formats without an APR id")
            spec = by_name[name] = replace(spec, dtype_id=dtype_id)
        _check_meaning(spec)
        other = owners.setdefault(_id(spec), name)
        if other != name:
            raise FormatError(f"formats {other!r} and {name!r} both claim id {spec.dtype_id}")
    return by_name


def _id(spec: FormatSpec) -> int:
    assert spec.dtype_id is not None
    return spec.dtype_id


_FIXED = {_id(spec): spec for spec in NATIVE.values()} | SPECIFIED
_FIXED_NAMES = {spec.name: spec for spec in _FIXED.values()}


def _check_meaning(spec: FormatSpec) -> None:
    """Raise FormatError for a name or id that APR v2 gives another meaning."""
    fixed = _FIXED.get(_id(spec)) or _FIXED_NAMES.get(spec.name)
    if fixed and replace(spec, distribution="") != fixed:  # whichever plugin decodes it
        raise FormatError(
            f"format {spec.name!r} with id {spec.dtype_id} contradicts APR v2, where "
            f"{fixed.name!r} has id {fixed.dtype_id} and {fixed.bytes_per_block} bytes for "
            f"{fixed.block} values"
        )
    if spec.dtype_id in LEGACY_IDS or spec.name in LEGACY:
        raise FormatError(f"format {spec.name!r} with id {spec.dtype_id} is reserved by APR v2")
    if not (0 <= _id(spec) < 256 and 0 < spec.block < 2**20 and 0 < spec.bytes_per_block < 2**24):
        raise FormatError(f"format {spec.name!r} has impossible sizes: {spec}")


def file_formats(metadata: Mapping[str, Any]) -> dict[int, FormatSpec]:
    """Return {id: format} of a file: native formats, those fixed by APR v2, its own table.

    Raises FormatError if `apr.formats` is not a table of formats, or contradicts APR v2.
    """
    rows = metadata.get(TABLE) or []
    if not isinstance(rows, list) or len(rows) > 256:
        raise FormatError(f"metadata `{TABLE}` must be a list of formats")
    specs = [_spec(row) for row in rows]
    if len({spec.name for spec in specs}) != len(specs):
        raise FormatError(f"metadata `{TABLE}` lists a format twice")
    try:
        listed = number_formats(specs)
    except FormatError as error:
        raise FormatError(f"metadata `{TABLE}`: {error.message}") from None
    return _FIXED | {_id(spec): spec for spec in listed.values()}


def _spec(row: Any) -> FormatSpec:
    fields = {"id": int, "name": str, "distribution": str, "block": int, "bytes_per_block": int}
    if not isinstance(row, dict) or any(type(row.get(k)) is not t for k, t in fields.items()):
        raise FormatError(
            f"metadata `{TABLE}` holds a row without id, name, distribution, block and "
            "bytes_per_block"
        )
    if not (DISTRIBUTION.fullmatch(row["distribution"]) and NAME.fullmatch(row["name"])):
        raise FormatError(f"metadata `{TABLE}` holds a name that no format or distribution has")
    known = {key: row[key] for key in fields}
    return FormatSpec(dtype_id=known.pop("id"), **known)


def format_table(specs: Iterable[FormatSpec]) -> list[dict[str, Any]]:
    """Return the `apr.formats` rows for the block formats among `specs`, by id."""
    blocks = {spec.name: spec for spec in specs if spec.name not in NATIVE}
    return [
        {
            "id": s.dtype_id,
            "name": s.name,
            "distribution": s.distribution,
            "block": s.block,
            "bytes_per_block": s.bytes_per_block,
        }
        for s in sorted(blocks.values(), key=_id)
    ]
