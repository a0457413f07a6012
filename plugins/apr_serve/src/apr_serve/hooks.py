"""What this distribution provides. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Command, hookimpl

SETTINGS = (  # the flags of `apr serve`, without their dashes in front
    ("files", "list"), ("host", "str"), ("port", "int"), ("unix-socket", "str"),
    ("tls-cert", "str"), ("tls-key", "str"), ("backend", "str"), ("threads", "int"),
    ("context", "int"), ("kv-type", "str"), ("strict", "bool"), ("slots", "int"),
    ("queue", "int"), ("memory", "float"), ("cache", "float"), ("model-name", "list"),
    ("alias", "list"), ("api-key", "list"), ("api-key-file", "str"), ("cors-origin", "list"),
    ("trusted-proxy", "list"), ("max-body", "float"), ("max-header", "float"),
    ("header-timeout", "float"), ("body-timeout", "float"), ("request-timeout", "float"),
    ("heartbeat", "float"), ("drain-timeout", "float"), ("log-format", "str"),
    ("log-prompts", "bool"), ("strict-parameters", "bool"),
)  # fmt: skip


@hookimpl
def apr_commands() -> list[Command]:
    """`apr serve`, and the section of the configuration file that sets its options."""
    return [
        Command(
            "serve", "apr_serve.cli.command:command", summary="Serve models over HTTP.",
            settings=SETTINGS,
        )
    ]  # fmt: skip
