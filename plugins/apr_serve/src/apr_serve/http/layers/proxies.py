"""Whose request it is when proxies stand between: X-Forwarded-For, from those that are trusted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address, ip_address, ip_network

from starlette.datastructures import Headers
from starlette.types import Scope

from apr_core.plugin import UsageError

LOCAL = "local"  # who asks through a unix socket and says no more


class Proxies:
    """Addresses or networks whose word on clients counts.

    Whoever may open the unix socket is trusted, too. Raises UsageError for what is no address.
    """

    def __init__(self, trusted: Sequence[str]) -> None:
        try:
            self._trusted = [ip_network(text.strip(), strict=False) for text in trusted]
        except ValueError as error:
            raise UsageError(
                f"--trusted-proxy: {error}", "Write an address or a network, such as 10.0.0.0/8."
            ) from error

    def client(self, scope: Scope) -> str:
        """The address that is nearest to the server and no trusted proxy's."""
        found = (scope.get("client") or ("",))[0]
        for hop in _hops(scope):
            if not self._trusts(found):
                break
            found = hop
        return found or LOCAL

    def _trusts(self, text: str) -> bool:
        if not text:
            return True
        address = ip_address(text)
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._trusted)


def _hops(scope: Scope) -> Iterator[str]:
    """What X-Forwarded-For says, last first, as far as it is addresses."""
    said = ",".join(Headers(scope=scope).getlist("x-forwarded-for"))
    for text in reversed(said.split(",")):
        text = text.strip()
        if text.startswith("["):
            text = text[1:].partition("]")[0]
        elif text.count(":") == 1:  # with a port
            text = text.partition(":")[0]
        try:
            yield str(ip_address(text))
        except ValueError:
            return
