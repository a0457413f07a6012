"""The hooks a plugin may implement. All of them collect: no arguments, no order, no side effects.

A hooks module returns declarations, which are frozen records holding strings; HOOKS says of which
class. It must not import arrays, tokenizers or device libraries: `apr plugins list` imports every
hooks module.
"""

from __future__ import annotations

from collections.abc import Iterable

from pluggy import HookimplMarker, HookspecMarker

from apr_core.declarations import HOOKS, Declaration

hookimpl = HookimplMarker("apr")


@HookspecMarker("apr")
def _collect() -> Iterable[Declaration]:  # type: ignore[empty-body]
    """Return what the distribution provides, as declarations of the hook's class."""


globals().update(dict.fromkeys(HOOKS, _collect))  # pluggy looks for functions of these names
