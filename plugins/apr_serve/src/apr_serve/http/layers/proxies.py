"""The client's address behind proxies: X-Forwarded-For, from trusted proxies only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address, ip_address, ip_network

from starlette.datastructures import Headers
from starlette.types import Scope

from apr_core.plugin import UsageError

LOCAL = "local"  # a client of the unix socket without X-Forwarded-For


class Proxies:
    """Addresses or networks of proxies whose X-Forwarded-For is trusted.

    Clients of the unix socket are trusted, too. Raises UsageError for invalid addresses.
    """

    def __init__(self, trusted: Sequence[str]) -> None:
        try:
            self._trusted = [ip_network(text.strip(), strict=False) for text in trusted]
        except ValueError as error:
            raise UsageError(
                f"--trusted-proxy: {error}", "Write an address or a network, such as 10.0.0.0/8."
            ) from error

    def client(self, scope: Scope) -> str:
        """Return the address nearest to the server that is not a trusted proxy's."""
        address = (scope.get("client") or ("",))[0]
        for hop in _hops(scope):
            if not self._trusts(address):
                break
            address = hop
        return address or LOCAL

    def _trusts(self, text: str) -> bool:
        if not text:
            return True
        address = ip_address(text)
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._trusted)


def _hops(scope: Scope) -> Iterator[str]:
    """Yield the addresses in X-Forwarded-For, last first, up to the first invalid one."""
    header = ",".join(Headers(scope=scope).getlist("x-forwarded-for"))
    for text in reversed(header.split(",")):
        text = text.strip()
        if text.startswith("["):
            text = text[1:].partition("]")[0]
        elif text.count(":") == 1:  # with a port
            text = text.partition(":")[0]
        try:
            yield str(ip_address(text))
        except ValueError:
            return
