"""Sets of shards: written together, joined from any one, incomplete or mixed sets refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from apr_core.errors import FormatError, NotFound, UsageError
from apr_core.format import NATIVE, AprFile, FormatSpec
from apr_core.format.writer import AprWriter, TensorSpec

F32 = NATIVE["f32"]
OWN = FormatSpec("own", None, 32, 4, "apr-own")
TENSORS = {f"t{i:02d}": np.full(50 + i, i, np.float32) for i in range(10)}


def write_set(
    path: Path, max_bytes: int = 700, metadata: dict | None = None, **options
) -> list[Path]:
    specs = [TensorSpec(n, F32, t.shape) for n, t in TENSORS.items()]
    specs.append(TensorSpec("z", OWN, (2, 40)))
    identity = {"architecture": "x"} | (metadata or {})
    with AprWriter(path, identity, specs, shard_bytes=max_bytes, **options) as writer:
        for name in writer.names:
            writer.add(name, [TENSORS[name] if name != "z" else bytes(range(16))])
        if not options:  # nothing is visible before all is whole
            assert not any(p.exists() for p in writer.paths)
    assert sum(p.stat().st_size for p in writer.paths) == writer.nbytes
    return writer.paths


def test_round_trip_from_any_shard(tmp_path: Path) -> None:
    paths = write_set(tmp_path / "model.apr")
    assert len(paths) > 3
    assert paths[0].name == f"model-00001-of-{len(paths):05d}.apr"
    assert sorted(tmp_path.iterdir()) == paths
    for path in paths:
        with AprFile.open(path) as file:
            assert list(file.tensors) == [*TENSORS, "z"]
            for name, values in TENSORS.items():
                assert file.raw(name).tobytes() == values.tobytes()
            assert file.raw("z").tobytes() == bytes(range(16))
            assert file.tensors["z"].format == "own"
            assert file.metadata["architecture"] == "x"
            assert file.metadata["apr.formats"][0]["name"] == "own"
            assert file.path == paths[0] and file.paths == paths
            assert file.size == sum(p.stat().st_size for p in paths)
            assert all(a == b for a, b in file.footer_crcs().values())
            assert "sharded" in file.header.flag_names()


def test_metadata_of_each_shard(tmp_path: Path) -> None:
    paths = write_set(tmp_path / "m.apr")
    with AprFile.open(paths[0]) as file:
        info = file.metadata["sharding"]
    assert info["shard_count"] == len(paths) and info["shard_index"] == 0
    assert info["pattern"].format(2, len(paths)) == paths[1].name
    assert info["total_size"] == sum(t.nbytes for t in TENSORS.values()) + 16


def test_one_tensor_larger_than_a_shard(tmp_path: Path) -> None:
    assert len(write_set(tmp_path / "m.apr", max_bytes=1)) == len(TENSORS) + 1
    assert len(write_set(tmp_path / "n.apr", max_bytes=1 << 30)) == 1
    with AprFile.open(tmp_path / "n-00001-of-00001.apr") as file:
        assert len(file.tensors) == 11


def test_missing_shard_is_named(tmp_path: Path) -> None:
    paths = write_set(tmp_path / "m.apr")
    paths[2].unlink()
    with pytest.raises(NotFound, match=paths[2].name):
        AprFile.open(paths[0])


def test_shard_under_another_name(tmp_path: Path) -> None:
    paths = write_set(tmp_path / "m.apr")
    shutil.copy(paths[0], tmp_path / "renamed.apr")
    with pytest.raises(FormatError, match="must be named"):
        AprFile.open(tmp_path / "renamed.apr")
    shutil.copy(paths[0], paths[1])
    with pytest.raises(FormatError, match="another shard than its name says"):
        AprFile.open(paths[0])


def test_shards_of_two_sets_are_not_mixed(tmp_path: Path) -> None:
    paths = write_set(tmp_path / "m.apr")
    other = write_set(tmp_path / "n.apr", metadata={"architecture": "y"})
    shutil.copy(other[1], paths[1])
    with pytest.raises(FormatError, match="belongs to another set"):
        AprFile.open(paths[0])


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    paths = write_set(tmp_path / "m.apr")
    paths[1].write_bytes(paths[1].read_bytes()[:-200])
    with pytest.raises(FormatError, match=paths[1].name):
        AprFile.open(paths[0])


def test_failure_leaves_no_shard(tmp_path: Path) -> None:
    specs = [TensorSpec(n, F32, t.shape) for n, t in TENSORS.items()]
    with (
        pytest.raises(KeyboardInterrupt),
        AprWriter(tmp_path / "m.apr", {}, specs, shard_bytes=700) as writer,
    ):
        for name in writer.names[:6]:
            writer.add(name, [TENSORS[name]])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_failure_while_publishing_leaves_no_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Path] = []
    real = Path.replace

    def second_fails(self: Path, target: Path) -> Path:
        if done:
            raise OSError(5, "Input/output error")
        done.append(target)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", second_fails)
    with pytest.raises(Exception, match="Input/output error"):
        write_set(tmp_path / "m.apr")
    assert list(tmp_path.iterdir()) == []


def test_existing_shards(tmp_path: Path) -> None:
    write_set(tmp_path / "m.apr")
    with pytest.raises(UsageError, match="exists"):
        write_set(tmp_path / "m.apr")
    write_set(tmp_path / "m.apr", force=True)
    with pytest.raises(NotFound, match="directory"):
        write_set(tmp_path / "no" / "m.apr")


def test_no_tensors(tmp_path: Path) -> None:
    with AprWriter(tmp_path / "m.apr", {}, [], shard_bytes=100) as writer:
        pass
    with AprFile.open(writer.paths[0]) as file:
        assert file.tensors == {}
