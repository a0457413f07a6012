"""Options of a server, from the command line, a configuration file or a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

KEY_VARIABLE = "APR_API_KEY"  # environment variable: API keys, separated by commas


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Times in seconds, sizes in bytes. Without `api_keys` anybody may send requests."""

    host: str = "127.0.0.1"
    port: int = 8080  # 0: any free port
    unix_socket: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()  # addresses and networks
    aliases: Mapping[str, str] = field(default_factory=dict)
    max_body: int = 8 << 20
    max_header: int = 64 << 10
    header_timeout: float = 30.0
    body_timeout: float = 60.0
    request_timeout: float = 3600.0
    heartbeat: float = 10.0
    drain_timeout: float = 30.0
    log_format: Literal["pretty", "json"] = "pretty"
    log_prompts: bool = False
    strict_parameters: bool = False  # refuse unknown fields
