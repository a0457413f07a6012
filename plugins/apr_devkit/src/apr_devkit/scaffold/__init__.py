"""New plugins: a package for each kind that installs, works and passes its conformance kit.

The templates beside this file mirror what is written: `@{name}` is replaced, a folder `package`
gets the package's name, `dot-` becomes a dot, and files without `.tmpl` are copied as they are.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from apr_core.plugin import InputOutputError, UsageError
from apr_devkit.scaffold.naming import KINDS, PluginNames, names_for

__all__ = ["KINDS", "PluginNames", "files_of", "names_for", "write_plugin"]

HERE = Path(__file__).parent
PLACEHOLDER = re.compile(r"@\{(\w+)\}")
ABOUT = "about.md.tmpl"  # the part of the README that only this kind has


def write_plugin(names: PluginNames, directory: Path) -> list[Path]:
    """Write the package into an empty or new directory; return its files.

    Raises UsageError if there is something already, InputOutputError if it cannot be written. It is
    written as a whole or not at all.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(
            f"{directory} exists and is not an empty directory", "Give another one with --dir."
        )
    content = files_of(names)
    target = Path(os.path.realpath(directory))
    beside = target.parent / f".{target.name}.{os.getpid()}.part"
    try:
        for name, data in content.items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            (beside / name).write_bytes(data)
        _put(beside, target)
    except OSError as error:
        raise InputOutputError(
            f"{directory} cannot be written: {error.strerror or error}",
            "Give a directory that is yours with --dir.",
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return [directory / name for name in content]


def _put(beside: Path, target: Path) -> None:
    """Rename; into an empty directory that exists already, which may be the working directory."""
    if not target.exists():
        beside.rename(target)
        return
    moved: list[Path] = []
    try:
        for entry in list(beside.iterdir()):
            entry.rename(target / entry.name)
            moved.append(target / entry.name)
    except OSError:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def files_of(names: PluginNames) -> dict[str, bytes]:
    """Return {relative path: content} of the package, sorted by path."""
    about = (HERE / names.kind / ABOUT).read_text("utf-8")
    values = names.values() | {"about": filled(about, names.values())}
    files: dict[str, bytes] = {}
    for root in (HERE / "common", HERE / names.kind):
        for path in _templates(root):
            name = _target_name(path.relative_to(root), names)
            if path.suffix == ".tmpl":
                files[name] = filled(path.read_text("utf-8"), values).encode("utf-8")
            else:
                files[name] = path.read_bytes()
    return dict(sorted(files.items()))


def _templates(root: Path) -> Iterator[Path]:
    for path in root.rglob("*"):
        if path.is_file() and path.name != ABOUT and "__pycache__" not in path.parts:
            yield path


def _target_name(path: Path, names: PluginNames) -> str:
    parts = [names.package if part == "package" else part for part in path.parts]
    parts = [f".{p.removeprefix('dot-')}" if p.startswith("dot-") else p for p in parts]
    return "/".join(parts).removesuffix(".tmpl")


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return the template's text, filled in. Raises KeyError for a placeholder without a value."""
    return PLACEHOLDER.sub(lambda match: values[match[1]], text)
