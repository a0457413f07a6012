"""The writer: bytes, laziness, atomicity, refusals."""

from __future__ import annotations

import errno
import resource
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from apr_core.errors import FormatError, InputOutputError, NotFound, UsageError
from apr_core.format import NATIVE, AprFile, FormatSpec
from apr_core.format.writer import AprWriter, TensorSpec
from tests.apr_files import write

F32 = NATIVE["f32"]


def specs(**shapes: tuple[int, ...]) -> list[TensorSpec]:
    return [TensorSpec(name, F32, shape) for name, shape in shapes.items()]


def test_check_vector(tmp_path: Path) -> None:
    """The file of the APR v2 description, computed there by another program."""
    path = write(tmp_path / "v.apr", {}, {"w": np.array([[1, 2], [3, 4]], np.float32)})
    raw = path.read_bytes()
    assert len(raw) == 260
    assert struct.unpack_from("<QQ", raw, 24) == (128, 192)
    assert struct.unpack_from("<I", raw, 40) == (0xA6DDBE27,)
    assert struct.unpack_from("<I", raw, 256) == (0x25DE914A,)
    assert raw[128:165].hex() == (
        "010077000202000000000000000200000000000000" + "0000000000000000" + "1000000000000000"
    )
    assert raw[:8] == b"APR\0\x02\0\x00\x04"
    assert raw[192:208] == np.array([1, 2, 3, 4], "<f4").tobytes()


def test_layout_is_aligned_sorted_and_summed(tmp_path: Path) -> None:
    tensors = {f"t{i}": np.full(i * 7 + 1, i, np.float32) for i in (3, 10, 1, 2)}
    path = write(tmp_path / "m.apr", {"näme": "ü"}, tensors)
    raw = path.read_bytes()
    assert zlib.crc32(raw[:-4]) == int.from_bytes(raw[-4:], "little")
    with AprFile.open(path) as file:
        assert list(file.tensors) == ["t1", "t10", "t2", "t3"]
        assert file.metadata == {"näme": "ü"}
        assert all(e.offset % 64 == 0 for e in file.tensors.values())
        assert file.padding_errors() == []
        assert file.size == len(raw)
        for name, values in tensors.items():
            assert file.raw(name).tobytes() == values.tobytes()


def test_same_input_same_bytes(tmp_path: Path) -> None:
    a = write(tmp_path / "a.apr", {"k": [1]}, {"x": np.ones(3)})
    b = write(tmp_path / "b.apr", {"k": [1]}, {"x": np.ones(3)})
    assert a.read_bytes() == b.read_bytes()


def test_chunks_of_any_kind_and_size(tmp_path: Path) -> None:
    data = np.arange(100, dtype=np.float32)
    path = tmp_path / "m.apr"
    with AprWriter(path, {}, specs(a=(100,), b=(0, 4), c=())) as writer:
        size = writer.nbytes
        writer.add("a", (c for c in (data[:30], data[30:].tobytes()[:40], b"", data[40:].data)))
        writer.add("b", [])
        writer.add("c", [np.float32(5).tobytes()])
    assert path.stat().st_size == size
    with AprFile.open(path) as file:
        assert file.raw("a").tobytes() == data.tobytes()
        assert file.raw("b").size == 0 and file.raw("c").view("<f4")[0] == 5


def test_formats_without_id_are_numbered_by_name_and_listed(tmp_path: Path) -> None:
    zeta = FormatSpec("zeta", None, 32, 9, "apr-zeta")
    alpha = FormatSpec("alpha", None, 16, 5, "apr-alpha")
    known = FormatSpec("q6_k", 14, 256, 210, "apr-quant")
    tensors = {
        "a": (zeta, (2, 33), bytes(2 * 2 * 9)),
        "b": (alpha, (3, 5, 2), bytes(2 * 5)),
        "c": (known, (1, 256), bytes(210)),
        "d": np.ones(2),
    }
    path = write(tmp_path / "m.apr", {"apr.formats": "stale"}, tensors)
    with AprFile.open(path) as file:
        assert [(r["id"], r["name"], r["distribution"]) for r in file.metadata["apr.formats"]] == [
            (14, "q6_k", "apr-quant"),
            (192, "alpha", "apr-alpha"),
            (193, "zeta", "apr-zeta"),
        ]
        assert [e.format for e in file.tensors.values()] == ["zeta", "alpha", "q6_k", "f32"]
        assert file.tensors["a"].dtype_id == 193
        assert file.tensors["a"].spec == FormatSpec("zeta", 193, 32, 9, "apr-zeta")
        assert "quantized" in file.header.flag_names()


def test_only_native_formats_leave_no_table(tmp_path: Path) -> None:
    path = write(tmp_path / "m.apr", {"apr.formats": []}, {"d": np.ones(2)})
    with AprFile.open(path) as file:
        assert "apr.formats" not in file.metadata
        assert file.header.flag_names() == ["row_major"]


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (("x", None, 32, 9), ("x", None, 32, 10), "two different formats are called 'x'"),
        (("x", 200, 32, 9), ("y", 200, 32, 9), "both claim id 200"),
        (("x", 12, 256, 144), ("y", None, 1, 1), "contradicts APR v2"),
        (("q4_k", None, 256, 144), ("y", None, 1, 1), "contradicts APR v2"),
        (("f32", None, 1, 4), ("y", None, 1, 1), "contradicts APR v2"),
        (("x", 128, 32, 18), ("y", None, 1, 1), "reserved"),
        (("x", 256, 32, 18), ("y", None, 1, 1), "impossible"),
        (("apr_q4", 128, 32, 18), ("y", None, 1, 1), "only read"),
    ],
)
def test_formats_that_clash(tmp_path: Path, a: tuple, b: tuple, text: str) -> None:
    pair = [TensorSpec("a", FormatSpec(*a), (1, 32)), TensorSpec("b", FormatSpec(*b), (1, 32))]
    with pytest.raises(FormatError, match=text):
        AprWriter(tmp_path / "m.apr", {}, pair)
    assert list(tmp_path.iterdir()) == []


def test_at_most_64_formats_of_the_file(tmp_path: Path) -> None:
    many = [TensorSpec(f"t{i}", FormatSpec(f"own{i}", None, 1, 1), (1,)) for i in range(65)]
    with pytest.raises(FormatError, match="at most 64"):
        AprWriter(tmp_path / "m.apr", {}, many)
    AprWriter(tmp_path / "m.apr", {}, many[:64])


@pytest.mark.parametrize("given", [0, 3, 5, 400])
def test_wrong_byte_count(tmp_path: Path, given: int) -> None:
    with (
        pytest.raises(FormatError, match=r"tensor 'a'.*16 expected"),
        AprWriter(tmp_path / "m.apr", {}, specs(a=(4,))) as writer,
    ):
        writer.add("a", [np.zeros(given, np.float32)])
    assert list(tmp_path.iterdir()) == []


def test_wrong_order_missing_and_surplus_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.apr"
    with (
        pytest.raises(FormatError, match="out of turn: expected 'a'"),
        AprWriter(path, {}, specs(a=(), b=())) as w,
    ):
        w.add("b", [bytes(4)])
    with (
        pytest.raises(FormatError, match="'b' was never"),
        AprWriter(path, {}, specs(a=(), b=())) as w,
    ):
        w.add("a", [bytes(4)])
    with pytest.raises(FormatError, match="out of turn"), AprWriter(path, {}, specs(a=())) as w:
        w.add("a", [bytes(4)])
        w.add("a", [bytes(4)])
    with pytest.raises(FormatError, match="given twice"):
        AprWriter(path, {}, [*specs(a=()), *specs(a=())])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    def broken():
        yield bytes(8)
        raise error("half-way")

    path = tmp_path / "m.apr"
    path.write_bytes(b"old")
    with pytest.raises(error), AprWriter(path, {}, specs(a=(4,)), force=True) as writer:
        assert len(list(tmp_path.iterdir())) == 2  # the part file is beside its target
        writer.add("a", broken())
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.apr"]


def test_existing_target(tmp_path: Path) -> None:
    path = tmp_path / "m.apr"
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match="exists") as caught:
        write(path, {}, {})
    assert "`force`" in caught.value.hint
    write(path, {}, {"a": np.ones(1)}, force=True)
    with AprFile.open(path) as file:
        assert list(file.tensors) == ["a"]


def test_target_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "m.apr"
    with pytest.raises(UsageError, match="exists"), AprWriter(path, {}, []):
        path.write_bytes(b"somebody else's")
    assert path.read_bytes() == b"somebody else's"
    assert len(list(tmp_path.iterdir())) == 1


def test_bad_targets(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"directory .* does not exist"):
        AprWriter(tmp_path / "no" / "m.apr", {}, [])
    with pytest.raises(UsageError, match="is a directory"):
        AprWriter(tmp_path, {}, [], force=True)
    with pytest.raises(InputOutputError), AprWriter(tmp_path / ("x" * 300), {}, []):
        pass


def test_disk_too_small_is_noticed_before_writing(tmp_path: Path) -> None:
    with pytest.raises(InputOutputError, match=r"needs .* MiB"):
        AprWriter(tmp_path / "m.apr", {}, specs(a=(2**50,)))
    assert list(tmp_path.iterdir()) == []


def test_disk_full_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real refusal of the system (file size limit), as a full disk would be."""
    import signal

    monkeypatch.setattr(shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(1, 1, 2**40))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
        with (
            pytest.raises(InputOutputError, match="disk is full") as caught,
            AprWriter(tmp_path / "m.apr", {}, specs(a=(100_000,))) as writer,
        ):
            writer.add("a", (bytes(4000) for _ in range(100)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert "Nothing was left behind" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_rename_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InputOutputError, match="Permission denied"):
        write(tmp_path / "m.apr", {}, {})
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_source_are_not_called_disk_errors(tmp_path: Path) -> None:
    def unreadable():
        raise OSError(errno.EIO, "source disk")
        yield

    with (
        pytest.raises(OSError, match="source disk"),
        AprWriter(tmp_path / "m.apr", {}, specs(a=(4,))) as writer,
    ):
        writer.add("a", unreadable())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {1, 2}, "\ud800", b"x"])
def test_metadata_json_cannot_hold(tmp_path: Path, bad: object) -> None:
    with pytest.raises(FormatError, match="cannot be written as JSON"):
        AprWriter(tmp_path / "m.apr", {"k": bad}, [])


def test_metadata_cap(tmp_path: Path) -> None:
    longest = (16 << 20) - len('{"k":""}')
    AprWriter(tmp_path / "m.apr", {"k": "x" * longest}, [])
    with pytest.raises(FormatError, match="16 MiB"):
        AprWriter(tmp_path / "m.apr", {"k": "x" * (longest + 1)}, [])
    with pytest.raises(FormatError, match="16 MiB"):  # bytes count, not characters
        AprWriter(tmp_path / "m.apr", {"k": "ü" * (longest // 2 + 1)}, [])


@pytest.mark.parametrize("name", ["", "x" * 257, "ü" * 129, "\ud800"])
def test_names_the_index_cannot_hold(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError):
        AprWriter(tmp_path / "m.apr", {}, [TensorSpec(name, F32, (1,))])


@pytest.mark.parametrize("shape", [(1,) * 9, (-1,), (2**64, 0)])
def test_shapes_the_index_cannot_hold(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError):
        AprWriter(tmp_path / "m.apr", {}, [TensorSpec("a", F32, shape)])


def test_memory_stays_small_while_streaming(tmp_path: Path) -> None:
    """200 MB through the writer in 1 MB chunks raises the peak by far less."""
    chunk = bytes(1 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with AprWriter(tmp_path / "m.apr", {}, specs(a=(200 << 18,))) as writer:
        writer.add("a", (chunk for _ in range(200)))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 20_000  # KiB
    (tmp_path / "m.apr").unlink()
