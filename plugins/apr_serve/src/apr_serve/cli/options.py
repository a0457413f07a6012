"""The flags of `apr serve`, and the configuration file that may set any of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from apr_core.plugin import ConfigError, NotFound
from apr_core.runtime import config_content, config_path, get_registry, print_table, problems
from apr_serve.http.options import KEY_VARIABLE

Function = Callable[..., Any]
CONFIG = "apr.serve.config"  # in the context: the file whose [serve] section was read
SECRET = ("api_key",)
LARGEST = 1e9  # seconds, GiB, MiB or KiB: more is a typing error


class Number(click.FloatRange):
    """A number in a range; nan, inf and absurdly large numbers are refused."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Convert as click does; refuse nan and values above LARGEST."""
        number: float = super().convert(value, param, ctx)
        if not number <= LARGEST:
            self.fail(f"{value} is not a number up to {LARGEST:.0f}.", param, ctx)
        return number


FILE = click.Path(path_type=Path)
PORT = click.IntRange(0, 65535)
POSITIVE = Number(0, min_open=True)


def _read_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    """Make the [serve] section of --config, or of the user's file, the defaults."""
    path = value or config_path()
    if value and not value.exists():
        raise NotFound(f"{value}: no such configuration file")
    content = config_content(path)
    section = {key: setting for key, setting in content.items() if key == "serve"}
    for text, hint in problems(content if value else section, get_registry().settings()):
        raise ConfigError(f"{path}: {text}", hint)
    options = section.get("serve", {})
    ctx.default_map = {key.replace("-", "_"): setting for key, setting in options.items()}
    ctx.meta[CONFIG] = path


OPTIONS = (
    click.option("--config", type=FILE, is_eager=True, expose_value=False, callback=_read_config,
                 help="TOML whose [serve] section sets any of these; default: your own."),
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
    click.option("--port", type=PORT, default=8080, show_default=True, help="0: any free one."),
    click.option("--unix-socket", type=FILE, help="Listen on this socket file instead."),
    click.option("--tls-cert", type=FILE, help="PEM certificate: serve https."),
    click.option("--tls-key", type=FILE, help="PEM key of the certificate."),
    click.option("--backend", metavar="NAME[:DEVICE]",
                 help="Where to run; default: what fits this machine best."),
    click.option("--threads", type=click.IntRange(1), help="Default: one a physical core."),
    click.option("--context", type=click.IntRange(16), help="Context in tokens; default: all."),
    click.option("--kv-type", type=click.Choice(["f32", "f16", "q8"]),
                 help="Precision of cached keys and values. Default: f16."),
    click.option("--strict", is_flag=True, help="Refuse slow fallbacks."),
    click.option("--slots", type=click.IntRange(1, 1024), default=8, show_default=True,
                 help="Concurrent answers per model."),
    click.option("--queue", type=click.IntRange(1), default=128, show_default=True,
                 help="Maximum queued requests; beyond that clients get 429."),
    click.option("--memory", type=POSITIVE,
                 help="GiB for sequences and cached prefixes; default: half of what is free, "
                      "or nine tenths of what a device has left."),
    click.option("--cache", type=Number(0),
                 help="GiB of it for prefixes at most; 0: keep none."),
    click.option("--model-name", multiple=True, help="Name of each FILE, in order."),
    click.option("--alias", multiple=True, metavar="ALIAS=NAME", help="A further name."),
    click.option("--api-key", multiple=True, help="Better: --api-key-file or $APR_API_KEY."),
    click.option("--api-key-file", type=FILE, help="API keys, one a line."),
    click.option("--cors-origin", multiple=True, help="Allowed CORS origin (* for any)."),
    click.option("--trusted-proxy", multiple=True, metavar="ADDRESS",
                 help="Proxy or network whose X-Forwarded-For is believed."),
    click.option("--max-body", type=POSITIVE, default=8.0, show_default=True, help="MiB."),
    click.option("--max-header", type=Number(8), default=64.0, show_default=True, help="KiB."),
    click.option("--header-timeout", type=POSITIVE, default=30.0, show_default=True,
                 help="Seconds for a request's headers."),
    click.option("--body-timeout", type=POSITIVE, default=60.0, show_default=True,
                 help="Seconds for its body."),
    click.option("--request-timeout", type=POSITIVE, default=3600.0, show_default=True,
                 help="Seconds for its answer."),
    click.option("--heartbeat", type=POSITIVE, default=10.0, show_default=True,
                 help="Seconds of silence after which a stream gets a comment."),
    click.option("--drain-timeout", type=Number(0), default=30.0, show_default=True,
                 help="Seconds for answers to end after SIGTERM."),
    click.option("--log-format", type=click.Choice(["pretty", "json"]), default="pretty",
                 show_default=True, help="Form of the log on stderr."),
    click.option("--log-prompts", is_flag=True, help="Also log prompts."),
    click.option("--strict-parameters", is_flag=True,
                 help="Refuse requests with unknown fields; else they are ignored and named."),
    click.option("--show-config", is_flag=True,
                 help="Print every value and its source, then exit."),
)  # fmt: skip


def serve_options(function: Function) -> Function:
    """Add the options above to a command."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


def show_config(ctx: click.Context) -> None:
    """Print a table of all values and where each comes from."""
    sources = {
        ParameterSource.COMMANDLINE: "command line",
        ParameterSource.DEFAULT_MAP: str(ctx.meta[CONFIG]),
        ParameterSource.ENVIRONMENT: "environment",
    }
    rows = []
    for name, value in ctx.params.items():
        if name == "show_config":
            continue
        source = ctx.get_parameter_source(name)
        known = sources.get(source, "default") if source else "default"
        rows.append((name.replace("_", "-"), _shown(name, value), known))
    if KEY_VARIABLE in os.environ:
        count = len([key for key in os.environ[KEY_VARIABLE].split(",") if key.strip()])
        rows.append((f"${KEY_VARIABLE}", f"{count} given", "environment"))
    print_table(rows, ("setting", "value", "set by"))


def _shown(name: str, value: Any) -> str:
    if name in SECRET:
        return f"{len(value)} given" if value else "-"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
