"""Tens of thousands of damaged files: nothing but documented errors comes of them."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apr_core.errors import AprError, FormatError
from apr_core.format import AprFile, FormatSpec, decode_tensor, reader
from tests.apr_files import seal, write

MUTATIONS = 40_000
EDGES = (0, 1, 2, 63, 64, 127, 2**16 - 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 64, 2**64 - 1)
TOY = FormatSpec("toy", None, 4, 8, "apr-toy")


FIXTURES = [HealthCheck.function_scoped_fixture]


class InMemory(bytes):
    """Stands in for the map of a file, so that the bulk of the mutations touches no disk."""

    def close(self) -> None: ...

    def madvise(self, *args: int) -> None: ...


@pytest.fixture(scope="module")
def seed_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("seed") / "seed.apr"
    tensors = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b.weight": (TOY, (2, 5), bytes(range(32))),
        "ç": (FormatSpec("q4_k", 12, 256, 144, "d"), (1, 3), bytes(144)),
        "d": np.ones(()),
    }
    metadata = {"architecture": "x", "tokenizer.vocabulary": ["a", "\u0120b"], "deep": [[1.5]]}
    return write(path, metadata, tensors).read_bytes()


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """One to four edits; every other time the checksums are made right again."""
    out = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        kind = rng.randrange(7)
        at = rng.randrange(len(out))
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2 and rng.random() < 0.2:
            del out[at:]
        elif kind == 3:  # a header field
            at, size = rng.choice(
                ((4, 1), (5, 1), (6, 2), (8, 4), (12, 8), (20, 4), (24, 8), (32, 8), (40, 4))
            )
            _overwrite(out, at, rng.choice(EDGES), size)
        elif kind == 4:  # any number anywhere
            _overwrite(out, at, rng.choice(EDGES), rng.choice((1, 2, 4, 8)))
        elif kind == 5:
            end = at + rng.randrange(40)
            out[at:end] = out[at:end][::-1] if rng.random() < 0.5 else b""
        else:
            other = rng.randrange(len(out))
            out[at:at] = out[other : other + rng.randrange(40)]
        if not out:
            return b""
    return seal(out) if rng.random() < 0.7 else bytes(out)


def _overwrite(out: bytearray, at: int, value: int, size: int) -> None:
    raw = struct.pack("<Q", value)[:size]
    out[at : at + size] = raw[: max(0, len(out) - at)]


def exercise(path: Path) -> str:
    """Everything a command does with a file; returns how it ended."""
    try:
        with AprFile.open(path) as file:
            file.footer_crcs()
            file.padding_errors()
            for name, tensor in file.tensors.items():
                assert file.raw(name).size == tensor.nbytes
                try:
                    decode_tensor(tensor, file.raw(name), _Toy)
                except FormatError:
                    continue
    except AprError as error:
        assert error.message and type(error.message) is str
        error.message.encode()  # printable: no half surrogates
        return type(error).__name__
    return "ok"


class _Toy:
    def __init__(self, name: str) -> None:
        if name != "toy":
            raise FormatError("no such plugin")

    def decode(self, raw: np.ndarray, cols: int) -> np.ndarray:
        return raw.reshape(raw.shape[0], -1, 8)[..., 4:].reshape(raw.shape[0], -1)[:, :cols]


def test_mutations_give_documented_errors_only(
    seed_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(20260101)
    endings: dict[str, int] = {}
    for _ in range(MUTATIONS):
        raw = InMemory(mutate(seed_file, rng))
        monkeypatch.setattr(reader, "_map_file", lambda path, raw=raw: raw)
        ending = exercise(Path("m.apr"))
        endings[ending] = endings.get(ending, 0) + 1
    assert endings["FormatError"] > MUTATIONS // 3
    assert endings["ok"] > MUTATIONS // 50  # deep enough that some still open


def test_every_byte_changed_in_real_files(seed_file: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.apr"
    for at in range(len(seed_file)):
        out = bytearray(seed_file)
        out[at] ^= 0xFF
        path.write_bytes(seal(out))
        exercise(path)


names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(
    lambda s: len(s.encode()) <= 256
)
shapes = st.lists(st.integers(0, 6), max_size=8).map(tuple)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=("Cs",)), max_size=8), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=FIXTURES)
@given(
    metadata=st.dictionaries(names, json_values, max_size=5),
    tensors=st.dictionaries(names, shapes, max_size=6),
    native=st.booleans(),
)
def test_round_trip(tmp_path: Path, metadata: dict, tensors: dict, native: bool) -> None:
    from apr_core.format import NATIVE, tensor_nbytes

    for key in ("apr.formats", "sharding"):
        metadata.pop(key, None)
    spec = NATIVE["i8"] if native else TOY
    contents = {
        n: (spec, shape, bytes((i + j) % 256 for j in range(tensor_nbytes(spec, shape))))
        for i, (n, shape) in enumerate(tensors.items())
    }
    path = write(tmp_path / "m.apr", metadata, contents, force=True)
    with AprFile.open(path) as file:
        own_metadata = {k: v for k, v in file.metadata.items() if k != "apr.formats"}
        assert own_metadata == metadata
        assert list(file.tensors) == sorted(tensors, key=str.encode)
        for name, (_, shape, data) in contents.items():
            assert file.tensors[name].shape == shape
            assert file.raw(name).tobytes() == data
        assert file.padding_errors() == []
        assert all(stored == computed for stored, computed in file.footer_crcs().values())


@settings(max_examples=300, deadline=None, suppress_health_check=FIXTURES)
@given(data=st.binary(max_size=400), fix=st.booleans())
def test_arbitrary_bytes(tmp_path: Path, data: bytes, fix: bool) -> None:
    path = tmp_path / "m.apr"
    raw = bytearray(b"APR\0\x02\0\0\x04" + data)
    path.write_bytes(seal(raw) if fix else data)
    exercise(path)
