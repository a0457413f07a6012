"""How long a model thinks, whatever protocol says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_serve.http.errors import ApiError
from apr_serve.openai.chat_request import BUDGETS, OWN_NAMES

KWARGS = "chat_template_kwargs"


def by_effort(effort: str | None) -> tuple[bool | None, int | None]:
    """Whether to think, and how many tokens at most; None leaves it to the template."""
    if effort is None:
        return None, None
    return effort not in ("none", "minimal"), BUDGETS.get(effort)


def template_variables(given: Mapping[str, Any] | None) -> tuple[bool | None, dict[str, Any]]:
    """`enable_thinking` among what a template is told, and the rest. Raises ApiError."""
    variables = dict(given or {})
    for name in OWN_NAMES:
        if name in variables:
            raise ApiError(400, f"{KWARGS} may not set {name!r}", KWARGS)
    thinks = variables.pop("enable_thinking", None)
    if thinks is not None and not isinstance(thinks, bool):
        raise ApiError(400, "enable_thinking must be true or false", KWARGS)
    return thinks, variables
