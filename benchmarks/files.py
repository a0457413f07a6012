"""Import and export for benchmarks, quietly, and only what is not there yet."""

from __future__ import annotations

from pathlib import Path

from apr_core.cli.export import run_export
from apr_core.cli.import_ import run_import


def imported(checkpoint: Path | str, target: Path, recipe: str) -> Path:
    """The checkpoint as an .apr file."""
    if not target.exists():
        run_import(str(checkpoint), target, recipe)
    return target


def exported(file: Path, target: Path) -> Path:
    """The .apr file as GGUF."""
    if not target.exists():
        run_export(file, "gguf", target)
    return target
