"""apr: from a checkpoint to a quantized, validated, running model.

Programs import from here; authors of plugins from `apr_core.plugin`, authors of servers,
trainers and commands `apr_core.runtime`. Names are imported on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any


def lazily(
    module: str, where: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a module's lazy `__getattr__` and `__dir__`; `where` is {module: "names apart"}."""
    owners = {name: owner for owner, names in where.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in owners:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        try:
            return getattr(import_module(owners[name]), name)
        except AttributeError:  # a submodule that is not imported yet
            return import_module(f"{owners[name]}.{name}")

    return get, lambda: sorted(owners)


if TYPE_CHECKING:
    from apr_core.errors import AprError
    from apr_core.format import AprFile
    from apr_core.generate.sampling import SamplingParams
    from apr_core.model.model import Model, load
    from apr_core.text.tokenizer import Tokenizer
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "apr_core.errors": "AprError",
            "apr_core.format": "AprFile",
            "apr_core.generate.sampling": "SamplingParams",
            "apr_core.model.model": "Model load",
            "apr_core.text.tokenizer": "Tokenizer",
        },
    )

__version__ = "0.1.0"

__all__ = ["AprError", "AprFile", "Model", "SamplingParams", "Tokenizer", "__version__", "load"]
