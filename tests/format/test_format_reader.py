"""The reader: what it accepts, and every way a file can be wrong or hostile."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from apr_core.errors import AprError, FormatError, InputOutputError, NotFound
from apr_core.format import AprFile
from tests.apr_files import build, entry, write


def open_bytes(tmp_path: Path, raw: bytes) -> AprFile:
    path = tmp_path / "x.apr"
    path.write_bytes(raw)
    return AprFile.open(path)


def refuse(tmp_path: Path, raw: bytes, text: str) -> FormatError:
    with pytest.raises(FormatError, match=text) as caught:
        open_bytes(tmp_path, raw)
    assert str(tmp_path / "x.apr") in caught.value.message
    return caught.value


def test_reads_what_others_write(tmp_path: Path) -> None:
    """Data not in index order, larger gaps, no row-major flag: all allowed."""
    entries = (entry("a", 0, (2,), 128, 8), entry("b", 12, (2, 300), 192, 576))
    data = bytes(128) + struct.pack("<2f", 5, 6) + bytes(56 + 576)
    with open_bytes(tmp_path, build({"architecture": "x"}, entries, data, flags=0)) as file:
        assert file.metadata["architecture"] == "x"
        assert file.raw("a").view("<f4").tolist() == [5, 6]
        assert file.tensors["b"].format == "q4_k"
        assert file.tensors["b"].shape == (2, 300)
        [(stored, computed)] = file.footer_crcs().values()
        assert stored == computed


def test_views_are_read_only_and_outlive_the_file(tmp_path: Path) -> None:
    with AprFile.open(write(tmp_path / "m.apr", {}, {"a": np.ones(4)})) as file:
        raw = file.raw("a")
        assert np.shares_memory(raw, file.raw("a"))
    assert raw.view("<f4").tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        raw[0] = 1


def test_unknown_names_and_formats(tmp_path: Path) -> None:
    raw = build(b"{}", (entry("a", 77, (5,), 0, 3),), b"abc")
    with open_bytes(tmp_path, raw) as file:
        assert file.tensors["a"].format == "unknown:77"
        assert file.tensors["a"].spec is None
        assert file.raw("a").tobytes() == b"abc"
        with pytest.raises(NotFound, match="no tensor named 'b'"):
            file.raw("b")


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        AprFile.open(tmp_path / "none.apr")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotFound, match="no such file"):
        AprFile.open(tmp_path / "file" / "none.apr")
    with pytest.raises(FormatError, match="is a directory"):
        AprFile.open(tmp_path)
    with pytest.raises(NotFound, match="no such file"):
        AprFile.open("a\0b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="not a regular file"):
        AprFile.open(tmp_path / "pipe")
    with pytest.raises(InputOutputError, match="cannot be read"):
        AprFile.open(tmp_path / ("x" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path: Path) -> None:
    path = write(tmp_path / "m.apr", {}, {})
    path.chmod(0)
    with pytest.raises(InputOutputError, match="cannot be read"):
        AprFile.open(path)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 67])
def test_too_small(tmp_path: Path, size: int) -> None:
    refuse(tmp_path, build()[:size], "too small")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"magic": b"GGUF"}, "not an APR v2 file"),
        ({"magic": b"APR2"}, "not an APR v2 file"),
        ({"major": 1}, "version 1.0"),
        ({"major": 3}, "version 3.0"),
        ({"crc": 1}, "checksum"),
        ({"reserved": b"\0" * 19 + b"\1"}, "reserved"),
        ({"flags": 0x0C00}, "column-major"),
        ({"flags": 0x0401}, "LZ4"),
        ({"flags": 0x0402}, "zstd"),
        ({"flags": 0x0404}, "encrypted"),
        ({"meta_at": 0}, "metadata offset 0 is outside"),
        ({"meta_at": 2**64 - 1}, "metadata offset"),
        ({"meta_size": 2**32 - 1}, "metadata of 4294967295 bytes"),
        ({"meta_size": 16 << 20}, "tensor index offset"),
        ({"index_at": 0}, "tensor index offset"),
        ({"index_at": 2**64 - 64}, "tensor index offset"),
        ({"index_at": 127}, "multiple of 64"),
        ({"data_at": 64}, "tensor data offset"),
        ({"data_at": 2**63}, "tensor data offset"),
        ({"count": 1}, "1 tensors cannot fit"),
        ({"count": 2**32 - 1}, "4294967295 tensors cannot fit"),
    ],
)
def test_header_fields(tmp_path: Path, fields: dict, text: str) -> None:
    refuse(tmp_path, build(**fields), text)


def test_cut_off_anywhere(tmp_path: Path) -> None:
    raw = write(tmp_path / "m.apr", {"k": "v"}, {"a": np.ones(40), "b": np.ones(40)}).read_bytes()
    for size in range(0, len(raw) - 64):  # the last tensor's padding may be missing unnoticed
        with pytest.raises(FormatError):
            open_bytes(tmp_path, raw[:size])


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a":NaN}', "NaN is not a JSON number"),
        (b'{"a":-Infinity}', "-Infinity is not a JSON number"),
        (b'{"a":1e999}', "1e999 is not a JSON number"),
        (b'{"a":"\xff"}', "not JSON"),
        (b'{"a":"\\ud800"}', "not JSON"),
        (b'{"\\uDFFF":1}', "not JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a":' + b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"[" * (16 << 20), "nested too deeply"),
        (b"{}{}", "not JSON"),
        (b"{}\0", "not JSON"),
    ],
)
def test_metadata(tmp_path: Path, metadata: bytes, text: str) -> None:
    refuse(tmp_path, build(metadata), text)


def test_metadata_with_surrogate_pairs_is_fine(tmp_path: Path) -> None:
    with open_bytes(tmp_path, build(b'{"a":"\\ud83d\\ude00"}')) as file:
        assert file.metadata == {"a": "\N{GRINNING FACE}"}


def test_deep_metadata_with_surrogates(tmp_path: Path) -> None:
    deep = b'{"a":' + b"[" * 900 + b'"\\ud83d\\ude00"' + b"]" * 900 + b"}"
    try:
        open_bytes(tmp_path, build(deep)).close()
    except FormatError as error:
        assert "nested too deeply" in error.message


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ("x", "must be a list"),
        ({"id": 1}, "must be a list"),
        ([1], "row without"),
        ([{"id": 192}], "row without"),
        ([{"id": True, "name": "n", "distribution": "", "block": 1, "bytes_per_block": 1}], "row"),
        ([{"id": 192.0, "name": "n", "distribution": "", "block": 1, "bytes_per_block": 1}], "row"),
        ([("n", 256, 1, 1)], "impossible"),
        ([("n", -1, 1, 1)], "impossible"),
        ([("n", 192, 0, 1)], "impossible"),
        ([("n", 192, 1, 0)], "impossible"),
        ([("n", 192, 1, 2**62)], "impossible"),
        ([("n", 192, 10**400, 1)], "impossible"),
        ([("n", 192, 1, 1), ("m", 192, 1, 1)], "both claim id 192"),
        ([("n", 192, 1, 1), ("n", 193, 1, 1)], "twice"),
        ([("n", 192, 1, 1), ("n", 192, 1, 1)], "twice"),
        ([("f32", 192, 1, 1)], "contradicts"),
        ([("n", 0, 1, 1)], "contradicts"),
        ([("q4_k", 192, 256, 144)], "contradicts"),
        ([("q4_k", 12, 256, 16)], "contradicts"),
        ([("q6_k", 12, 256, 210)], "contradicts"),
        ([("apr_q8", 192, 1, 1)], "reserved"),
        ([("n", 129, 1, 1)], "reserved"),
        ([("n", i, 1, 1) for i in range(300)], "must be a list"),
    ],
)
def test_format_table(tmp_path: Path, rows: object, text: str) -> None:
    if isinstance(rows, list):
        rows = [
            dict(zip(("name", "id", "block", "bytes_per_block"), r, strict=True), distribution="d")
            if isinstance(r, tuple)
            else r
            for r in rows
        ]
    refuse(tmp_path, build({"apr.formats": rows}), text)


def test_format_table_names_the_ids(tmp_path: Path) -> None:
    row = {"id": 200, "name": "nf4", "distribution": "apr-nf4", "block": 64, "bytes_per_block": 34}
    raw = build({"apr.formats": [row]}, (entry("a", 200, (2, 65), 0, 136),), bytes(136))
    with open_bytes(tmp_path, raw) as file:
        assert file.tensors["a"].format == "nf4"
        assert file.tensors["a"].spec.distribution == "apr-nf4"


E = entry
DATA = bytes(256)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([E("a", 0, (4,), 0, 20)], "'a': 20 bytes, f32 of shape .4. takes 16"),
        ([E("a", 0, (4,), 0, 0)], "'a': 0 bytes"),
        ([E("a", 0, (4,), 256, 16)], "'a' ends at byte .*cut off"),
        ([E("a", 0, (4,), 2**64 - 64, 16)], "'a' ends at byte"),
        ([E("a", 0, (4,), 0, 2**64 - 1)], "'a' ends at byte"),
        ([E("a", 0, (4,), 2, 16)], "'a': offset 2 is no multiple of 64"),
        ([E("a", 0, (2**60,), 0, 16)], "'a': impossible shape"),
        ([E("a", 0, (2**60, 0), 0, 0)], "'a': impossible shape"),
        ([E("a", 0, (2**32, 2**32), 0, 0)], "'a': impossible shape"),  # product is 0 in 64 bits
        ([E("a", 0, (2**16,) * 8, 0, 0)], "'a': impossible shape"),
        ([E("a", 12, (2, 257), 0, 144)], "takes 576"),
        ([E("a", 129, (3,), 0, 8)], "takes 7"),
        ([E("a", 77, (2**60,), 0, 16)], "'a': impossible shape"),
        ([E("b", 0, (1,), 0, 4), E("a", 0, (1,), 64, 4)], "'a' is out of order"),
        ([E("a", 0, (1,), 0, 4), E("a", 0, (1,), 64, 4)], "'a' appears twice"),
        ([E("a", 0, (20,), 0, 80), E("b", 0, (1,), 64, 4)], "'a' and 'b' overlap"),
        ([E("a", 0, (1,), 64, 4), E("b", 0, (1,), 64, 4)], "'a' and 'b' overlap"),
        ([E("a", 77, (1,), 0, 200), E("b", 0, (1,), 128, 4)], "overlap"),
        ([E(b"\xff\xfe", 0, (1,), 0, 4)], "entry 0: the name is not UTF-8"),
        ([E(b"", 0, (1, 1), 0, 4)], "a name of 0 bytes"),
        ([E("a" * 257, 0, (1,), 0, 4)], "a name of 257 bytes"),
        ([struct.pack("<H", 65535) + bytes(60)], "a name of 65535 bytes"),
        ([struct.pack("<H", 200) + b"a" * 60], "cut off in the name"),
        ([E("a" * 40, 0, (1,), 0, 4)[:60]], "cut off"),
        ([E("a", 0, (1,) * 9, 0, 4)], "9 dims"),
        ([b"\1\0a\0\xff" + bytes(50)], "255 dims"),
    ],
)
def test_index(tmp_path: Path, entries: list[bytes], text: str) -> None:
    refuse(tmp_path, build(b"{}", tuple(entries), DATA), text)


def test_zero_sized_tensors_may_share_a_place(tmp_path: Path) -> None:
    entries = (E("a", 0, (0, 3), 0, 0), E("b", 0, (1,), 0, 4), E("c", 12, (0,), 0, 0))
    with open_bytes(tmp_path, build(b"{}", entries, DATA)) as file:
        assert file.raw("a").size == 0
        assert file.raw("c").size == 0


def test_damage_in_the_data_is_found_by_the_footer_only(tmp_path: Path) -> None:
    raw = bytearray(write(tmp_path / "m.apr", {}, {"a": np.ones(40)}).read_bytes())
    raw[-20] ^= 1
    seen: list[int] = []
    with open_bytes(tmp_path, bytes(raw)) as file:
        [(stored, computed)] = file.footer_crcs(seen.append).values()
        assert stored != computed
        assert sum(seen) == len(raw) - 4


def test_padding_that_is_not_zero(tmp_path: Path) -> None:
    path = write(tmp_path / "m.apr", {}, {"a": np.ones(3), "b": np.ones(3)})
    clean = path.read_bytes()
    with AprFile.open(path) as file:
        used = {**{n: (e.offset, e.offset + e.nbytes) for n, e in file.tensors.items()}}
        index_end = 128 + 2 * (2 + 1 + 2 + 8 + 16)
        spans = [(0, 66), (128, index_end), *used.values(), (len(clean) - 4, len(clean))]
    for at in range(len(clean)):
        raw = bytearray(clean)
        raw[at] ^= 0xFF
        if any(start <= at < end for start, end in spans):
            continue
        with open_bytes(tmp_path, bytes(raw)) as file:
            assert len(file.padding_errors()) == 1, at


def test_hostile_files_take_no_memory(tmp_path: Path) -> None:
    """A sparse file of a terabyte whose header says that all of it is index, or data."""
    huge = 1 << 40
    for fields in (
        {"index_at": 128, "data_at": huge, "count": 2**32 - 1},
        {"index_at": huge - 64, "data_at": huge, "count": 1},
        {"index_at": 128, "data_at": 128, "count": 0},
    ):
        raw = build(b"{}", **fields)
        path = tmp_path / "huge.apr"
        with path.open("wb") as file:
            file.write(raw[:128])
            file.truncate(huge + 4)
        tracemalloc.start()
        with suppress(AprError):
            AprFile.open(path).close()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 << 20


def test_dense_json_stays_within_a_bound(tmp_path: Path) -> None:
    metadata = json.dumps({"a": [[] for _ in range(200_000)]}, separators=(",", ":")).encode()
    tracemalloc.start()
    open_bytes(tmp_path, build(metadata)).close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * len(metadata)  # so 16 MiB of metadata never takes a gigabyte
