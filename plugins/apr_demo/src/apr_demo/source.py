"""The scheme `demo`: checkpoints that are package data. Downloads nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from apr_core.plugin import NotFound

MODELS = {"sums": Path(__file__).parent / "checkpoint"}


def fetch(
    url: str, *, progress: Callable[[str, int, int], None] | None = None, force: bool = False
) -> Path:
    """Return the directory of demo://NAME. Raises NotFound listing the available names."""
    name = url.partition("://")[2].strip("/")
    known = ", ".join(f"demo://{n}" for n in MODELS)
    if name not in MODELS:
        raise NotFound(f"no demo model is called {name!r}", f"There is: {known}")
    directory = MODELS[name]
    if not (directory / "config.json").exists():
        raise NotFound(
            f"demo://{name}: {directory} holds no checkpoint",
            "Reinstall apr-demo: its wheel carries the model.",
        )
    return directory


fetch.example_url = "demo://sums"  # type: ignore[attr-defined]  # what `apr plugins check` fetches
