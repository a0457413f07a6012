"""The model store: a folder of .apr files that were imported to be run, found again by name.

A file of it is called NAME.RECIPE.KEY.apr. The first half of KEY is a hash of where the model comes
from; the second of sizes and times, if that is on this machine: what has changed is imported anew.
All else is in the file's metadata; its time is that of its last use. Whoever imports has locked a
file, which the system unlocks when a process dies.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from apr_core.errors import NotFound, PluginNotFound, UsageError, reading
from apr_core.importing.source import URL, CheckpointSource, find_source, nowhere, openable
from apr_core.messages import Notice, did_you_mean, published, working
from apr_core.registry import get_registry
from apr_core.settings import store_dir

Importer = Callable[[CheckpointSource, Path, str], object]  # (source, file to write, recipe)
STORED = re.compile(r".+\.[^.]+\.[0-9a-f]{16}\.apr")


def find_model(
    name: str | os.PathLike[str], importer: Importer | None = None, progress: Notice | None = None
) -> Path:
    """Return the .apr file that a name means: a path, a name in the store, or a source.

    A source (a checkpoint's directory, a file that a plugin opens, a URL) is imported into the
    store at first. What a plugin opens keeps its number formats, all else gets the recommended
    recipe. `importer` does the work, by default in silence; without `progress` nothing is
    downloaded. Raises NotFound, UsageError (a name of several), PluginNotFound, InputOutputError,
    and what imports raise.
    """
    text, path, registry = os.fspath(name), Path(name), get_registry()
    if URL.fullmatch(text):
        key, called = _hash(text) + "0" * 8, text.rstrip("/").rpartition("/")[2]
    elif path.exists():
        imported = openable(path, registry) or path.suffix.lower() in published("source")
        if not (imported or path.is_dir()):
            return path
        key = _hash(str(path.resolve())) + _state(path)
        called = path.resolve().name if path.is_dir() else path.stem
    elif stored := _find(text):
        return _used(stored)
    else:
        raise nowhere(path, registry, [*entries(), *map(str, path.parent.glob("*.apr"))])
    return _used(_of_key(key) or _add(text, _slug(called), key, importer or _silently, progress))


def entries() -> dict[str, Path]:
    """Return the store's files, by their NAME, or NAME.RECIPE.KEY where several have that NAME.

    What processes that died as they imported have left there is removed.
    """
    folder = store_dir()
    for path in folder.glob(".*.lock"):
        with suppress(OSError), _lock(path):
            _tidy(path)
    paths = [path for path in sorted(folder.glob("*.apr")) if STORED.fullmatch(path.name)]
    names = [_name(path) for path in paths]
    return {n if names.count(n) == 1 else p.stem: p for n, p in zip(names, paths, strict=True)}


def remove(names: Iterable[str]) -> dict[Path, int]:
    """Remove files of the store, and return the bytes that each took.

    Raises NotFound or UsageError, before anything is removed, for a name of none or of several.
    """
    sizes = {}
    for name in names:
        if not (path := _find(name)):
            hint = did_you_mean(name, entries()) or "`apr list` shows what there is."
            raise NotFound(f"{name} is not in the model store, and nothing else is removed", hint)
        with reading(path):
            sizes[path] = path.stat().st_size
    for path in sizes:
        path.unlink(missing_ok=True)
    return sizes


def _find(name: str) -> Path | None:
    """Return the file of that name, or from that URL. Raises UsageError if there are several."""
    key, there = _hash(name) if URL.fullmatch(name) else "", entries()
    found = [n for n, p in there.items() if name in (_name(p), p.stem) or p.stem[-16:-8] == key]
    if len(found) > 1:
        raise UsageError(f"{name} means several models of the store", f"Say {' or '.join(found)}.")
    return there[found[0]] if found else None


def _of_key(key: str) -> Path | None:
    return next(store_dir().glob(f"*.{key}.apr"), None)


def _add(name: str, called: str, key: str, importer: Importer, progress: Notice | None) -> Path:
    """Import into the store, unless another process has done that meanwhile; return the file."""
    from apr_core.format.writer import naming  # neither is needed where all is there already
    from apr_core.importing.choosing import SOURCE

    folder, registry = store_dir(), get_registry()
    lock = folder / f".{key[:8]}.lock"  # one for all states of the source
    with naming(folder / called):
        folder.mkdir(parents=True, exist_ok=True)
        entries()
        locked = _lock(lock, f"waiting for another process that imports {name}")
    with locked:
        try:
            if not (target := _of_key(key)):
                source = find_source(name, registry, progress)
                recipe = SOURCE if source.checkpoint else registry.recommended_recipe()
                if not recipe:
                    raise PluginNotFound(
                        f"no installed plugin recommends a recipe to import {name} with",
                        f"pip install {min(published('recipe').values())}",
                    )
                target = folder / f"{called}.{_slug(recipe).replace('.', '_')}.{key}.apr"
                importer(source, target, recipe)
            return target
        finally:
            with suppress(OSError):  # the next one tidies up
                _tidy(lock, key)


def _lock(path: Path, waiting: str = "") -> BinaryIO:
    """Return the locked file; its last owner removes it. Raises OSError, or waits and says so."""
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                raise
            working(waiting, 0, 1)
            fcntl.flock(file, fcntl.LOCK_EX)
            working(waiting, 1, 1)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file


def _tidy(lock: Path, keep: str = "") -> None:
    """Remove what is left of imports under this lock: parts, all states but one, and the lock."""
    folder, origin = lock.parent, lock.name[1:-5]
    states = folder.glob(f"[!.]*.{origin}*.apr")
    newest_last = sorted(states, key=lambda p: (p.stem.endswith(keep), p.stat().st_mtime_ns))
    for path in [*folder.glob(f".*.{origin}*.part"), *newest_last[:-1], lock]:
        path.unlink(missing_ok=True)


def _silently(source: CheckpointSource, target: Path, recipe: str) -> None:
    from apr_core.importing.importer import plan_import, write_import

    write_import(plan_import(source, recipe=recipe, arch=None, registry=get_registry()), target)


def _used(path: Path) -> Path:
    with suppress(OSError):  # a store that is only read
        os.utime(path)
    return path


def _name(path: Path) -> str:
    return path.stem.rsplit(".", 2)[0]


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)[:48].strip("._-") or "model"


def _state(path: Path) -> str:
    """Return a hash of the sizes and times of a file, or of all files in a folder."""
    files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files]
    return _hash(repr([(name, s.st_size, s.st_mtime_ns) for name, s in stats]))


def _hash(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
