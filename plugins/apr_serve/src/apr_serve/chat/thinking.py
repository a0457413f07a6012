"""How long a model thinks, in the forms that protocols have for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_serve.http.errors import ApiError
from apr_serve.openai.chat_request import BUDGETS, OWN_NAMES

KWARGS = "chat_template_kwargs"


def by_effort(effort: str | None) -> tuple[bool | None, int | None]:
    """Return (whether to think, maximum thinking tokens); None leaves it to the template."""
    if effort is None:
        return None, None
    return effort not in ("none", "minimal"), BUDGETS.get(effort)


def template_variables(kwargs: Mapping[str, Any] | None) -> tuple[bool | None, dict[str, Any]]:
    """Return `enable_thinking` from the template's variables, and the rest. Raises ApiError."""
    variables = dict(kwargs or {})
    for name in OWN_NAMES:
        if name in variables:
            raise ApiError(400, f"{KWARGS} may not set {name!r}", KWARGS)
    thinks = variables.pop("enable_thinking", None)
    if thinks is not None and not isinstance(thinks, bool):
        raise ApiError(400, "enable_thinking must be true or false", KWARGS)
    return thinks, variables
