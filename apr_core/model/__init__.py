"""Models: a plan run by one decoder, over states that sequences keep in slots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr_core.model.model import Model, load

__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
    """Import a name on first use: states and steps are wanted without files and plugins."""
    if name in __all__:
        from apr_core.model import model

        return getattr(model, name)
    raise AttributeError(name)
