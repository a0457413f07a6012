"""The models a server serves, by the names clients may use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from apr_serve.chat.service import ChatService
from apr_serve.http.errors import ApiError


class ServedModels(Mapping[str, ChatService]):
    """Services by model id, in the order given; `aliases` are further names."""

    def __init__(
        self, services: Mapping[str, ChatService], aliases: Mapping[str, str] | None = None
    ) -> None:
        self._services, self.aliases = dict(services), dict(aliases or {})

    def __getitem__(self, name: str) -> ChatService:
        return self._services[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._services)

    def __len__(self) -> int:
        return len(self._services)

    def pick(self, name: str | None) -> ChatService:
        """Return the service of a name, or the only one for None. Raises ApiError 404."""
        if name is None and len(self._services) == 1:
            return next(iter(self._services.values()))
        known = self._services.get(self.aliases.get(name or "", name or ""))
        if known is None:
            served = ", ".join([*self._services, *self.aliases])
            problem = "say which model" if name is None else f"there is no model {name!r} here"
            raise ApiError(404, f"{problem}; served: {served}", "model", "model_not_found")
        return known
