"""The model store: what a name means, and that no way of dying leaves it unusable."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from apr_core.declarations import Quantizer, Recipe, Source
from apr_core.errors import InputOutputError, NotFound, PluginNotFound, UsageError
from apr_core.format import AprFile
from apr_core.importing import store
from apr_core.importing.checkpoint import Checkpoint
from apr_core.importing.store import entries, find_model, remove
from apr_core.registry import Registry, get_registry
from tests import tiny_checkpoints as tiny

pytestmark = pytest.mark.needs_plugins
HERE, HALVES = __name__, "tests.importing.test_importing"


def fetch(url, *, progress=None, force=False):
    return url.partition("://")[2].partition("@")[0]


def open_toy(path):
    return Checkpoint.open(Path(path).read_text())


def registry(*, recommended=True):
    family = get_registry().get("family", "qwen3_5").declaration
    return Registry.from_declarations({
        "family": [family],
        "third": [
            Quantizer("halves", f"{HALVES}:Halves", block=16, bytes_per_block=32),
            Recipe("halves", f"{HALVES}:EverythingHalves", recommended=recommended),
            Source("zip", f"{HERE}:fetch"),
            Source("toy", f"{HERE}:open_toy", suffixes=(".toy",)),
        ],
    })  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("APR_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(store, "get_registry", registry)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "store"


@pytest.fixture
def checkpoint(tmp_path):
    return tiny.write(tmp_path / "c-0.8B")


def never(*args):
    raise AssertionError(f"{args} is imported")


def recipe_of(path):
    with AprFile.open(path) as file:
        return file.metadata["apr.recipe"]


def test_a_source_is_imported_once_and_then_has_a_name(folder, checkpoint, tmp_path):
    first = find_model("c-0.8B")
    assert first.parent == folder and recipe_of(first) == "halves"
    for name in (checkpoint, f"{checkpoint}/", "c-0.8B", first.stem, first):
        os.utime(first, (1, 1))
        assert find_model(name, never) == first
        assert (first.stat().st_mtime > 1) == (name != first)  # when it was used
    checkpoint.rename(tmp_path / "elsewhere")
    assert find_model("c-0.8B", never) == first  # now the name is that of the store
    assert entries() == {"c-0.8B": first} and [*folder.iterdir()] == [first]


def test_packed_files_keep_their_formats(folder, checkpoint, tmp_path):
    for name, stem in (("-ün näme\n(1).TOY", "ün_näme_1"), ("x" * 200 + ".toy", "x" * 48)):
        (tmp_path / name).write_text(str(checkpoint))
        path = find_model(name)
        assert recipe_of(path) == "source" and path.name.startswith(f"{stem}.source.")
    (tmp_path / "folder").mkdir()
    (tmp_path / name).rename(tmp_path / "folder" / "x.toy")
    for name in ("folder", "zip://folder"):  # what there is, is known when it is there
        assert find_model(name).name.startswith("folder.source.")


def test_what_has_changed_is_imported_anew(folder, checkpoint):
    first = find_model(checkpoint)
    os.utime(checkpoint / "config.json", (1, 1))
    os.utime(first, (1e10, 1e10))  # as if another process had used it after the import
    second = find_model(checkpoint)
    assert second != first and [*folder.iterdir()] == [second]
    url = f"zip://{checkpoint}"
    assert find_model(url) == find_model(url, never)
    os.utime(checkpoint / "config.json", (2, 2))
    assert find_model(url, never)  # asking would take time: `apr rm` forgets what a URL was


def test_names_of_several_models(folder, checkpoint, tmp_path):
    url = f"zip://{checkpoint}"
    by_path, by_url = find_model(checkpoint), find_model(url)
    assert entries() == {path.stem: path for path in (by_path, by_url)}
    checkpoint.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="means several") as several:
        find_model("c-0.8B", never)
    assert by_path.stem in several.value.hint and by_url.stem in several.value.hint
    with pytest.raises(NotFound, match="not in the model store"):
        remove([by_path.stem, "nothing"])
    assert remove([url, by_url.stem]) == {by_url: by_path.stat().st_size}
    assert list(remove(["c-0.8B"])) == [by_path] and not entries()


def test_only_what_is_in_the_store_is_removed(folder, checkpoint):
    path = find_model(checkpoint)
    for name in (checkpoint, path, f"{folder.name}/{path.name}", "../c-0.8B", ""):
        with pytest.raises(NotFound, match="store"):
            remove([str(name)])
    assert path.exists() and checkpoint.exists()


def test_names_of_nothing(folder, checkpoint, monkeypatch):
    find_model(checkpoint)
    (folder.parent / "mine.apr").touch()
    for name, words in (
        ("c-0.7B", "Did you mean c-0.8B?"), ("min.apr", "mine.apr?"), ("Org/Z", "hub, write"),
        ("nix", "Give a path, or a URL that begins with"),
    ):  # fmt: skip
        with pytest.raises(NotFound, match=f"^{name}: no such file") as error:
            find_model(name)
        assert words in error.value.hint
    with pytest.raises(PluginNotFound, match="'nowhere'"):
        find_model("nowhere://x")
    (folder.parent / "x.gguf").touch()
    with pytest.raises(PluginNotFound, match="opens such files"):
        find_model("x.gguf")
    monkeypatch.setattr(store, "get_registry", lambda: registry(recommended=False))
    with pytest.raises(PluginNotFound, match="recommends a recipe") as error:
        find_model("zip://x")
    assert "pip install" in error.value.hint and "zip://x" not in entries()


def in_child(action):
    """Fork: the child runs `action`; returns its process id."""
    child = os.fork()
    if not child:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return child


def killed_at(moment, action):
    """Run `action` in a child that is killed as it uses the store for the `moment`-th time."""
    uses = []

    def hook(event, args):
        if event == "fcntl.flock" or os.environ["APR_STORE"] in str(args[:1]):
            uses.append(event)
            if len(uses) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    def run():
        sys.addaudithook(hook)
        action()

    _, status = os.waitpid(in_child(run), 0)
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


@pytest.mark.parametrize("change", [False, True], ids=["at first", "anew"])
def test_a_process_may_be_killed_at_any_moment(folder, checkpoint, change):
    if change:
        find_model(checkpoint)
        os.utime(checkpoint / "config.json", (1, 1))
    moment = 1
    while killed_at(moment, lambda: find_model(checkpoint)):
        for path in entries().values():  # what is there is whole, and nothing else stays
            AprFile.open(path).close()
        assert all(path.suffix == ".apr" for path in folder.glob("*"))
        if not change:
            shutil.rmtree(folder, ignore_errors=True)
        else:  # until the last moments the old one is there, and then the new one
            assert len(entries()) == 1
            os.utime(checkpoint / "config.json", (moment, moment))
        moment += 1
    assert moment > 12 and len(entries()) == 1
    moment = 1
    while killed_at(moment, lambda: remove(["c-0.8B"])):
        assert find_model(checkpoint).exists()
        moment += 1
    assert moment > 1 and not entries()


def test_processes_that_want_a_model_wait_for_the_one_that_imports_it(folder, checkpoint, tmp_path):
    log = tmp_path / "imports"
    log.touch()

    def slowly(source, target, recipe):
        first = not log.read_text()
        with log.open("a") as file:
            file.write("x")
        time.sleep(0.3)
        if first:
            raise InputOutputError("the first fails")
        store._silently(source, target, recipe)

    children = []
    for pause in (0.1, 0.0, 0.4, 0.0):  # the last comes when the first has removed the lock file
        children.append(in_child(lambda: find_model(checkpoint, slowly)))
        time.sleep(pause)
        entries()  # takes nothing for a rest that is being written
    ends = [os.waitpid(child, 0)[1] for child in children]
    assert sorted(ends) == [0, 0, 0, 1 << 8]
    assert log.read_text() == "xx" and len([*folder.iterdir()]) == 1


def test_failed_imports_leave_nothing(folder, checkpoint):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(InputOutputError, match="disk is full") as full:
            find_model(checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "APR_STORE" in full.value.hint and not any(folder.iterdir())

    def interrupted(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_model(checkpoint, interrupted)
    assert not any(folder.iterdir())
    folder.rmdir()
    folder.touch()
    with pytest.raises(InputOutputError, match="cannot be written") as blocked:
        find_model(checkpoint)
    assert "APR_STORE" in blocked.value.hint and not entries()
