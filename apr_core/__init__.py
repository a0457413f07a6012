"""apr: from a checkpoint to a quantized, validated, running model.

Programs import from here; authors of plugins from `apr_core.plugin`, authors of servers,
trainers and commands `apr_core.runtime`. Names are imported on first use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any


def lazily(module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a module's `__getattr__` and `__dir__` for what its `if TYPE_CHECKING` imports."""

    @cache
    def owners() -> dict[str, str]:
        import ast

        source = Path(str(sys.modules[module].__file__)).read_text("utf-8")
        block = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
        imports = (node for node in block.body if isinstance(node, ast.ImportFrom))
        return {alias.name: str(node.module) for node in imports for alias in node.names}

    def get(name: str) -> Any:
        if name.startswith("__") or name not in owners():
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        try:
            return getattr(import_module(owners()[name]), name)
        except AttributeError:  # a submodule that is not imported yet
            return import_module(f"{owners()[name]}.{name}")

    return get, lambda: sorted(owners())


if TYPE_CHECKING:
    from apr_core.errors import AprError
    from apr_core.format import AprFile
    from apr_core.generate.sampling import SamplingParams
    from apr_core.importing.store import find_model
    from apr_core.model.model import Model, load
    from apr_core.text.tokenizer import Tokenizer
else:
    __getattr__, __dir__ = lazily(__name__)

__version__ = "0.1.0"

__all__ = [
    "AprError", "AprFile", "Model", "SamplingParams", "Tokenizer", "__version__", "find_model",
    "load",
]  # fmt: skip
