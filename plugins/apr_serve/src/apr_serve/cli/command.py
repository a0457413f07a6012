"""`apr serve`: serves models to many clients at once, by OpenAI's API and Anthropic's."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any

import click

from apr_core.plugin import AprError, NotFound, UsageError
from apr_core.runtime import (
    human_bytes,
    model_file,
    show_notices,
    sparing_collections,
    upload_progress,
)
from apr_serve.cli.options import serve_options, show_config

if TYPE_CHECKING:
    from apr_core.runtime import Model
    from apr_serve.chat.service import ChatService
    from apr_serve.engine.engine import Engine
    from apr_serve.http.options import ServerOptions

ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s?#A-Z]+")
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
SAMPLE = 4096  # tokens of a sequence by whose size models divide memory
SHORT = 256  # tokens of a sequence that must fit
GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10


@click.command()
@click.argument("files", nargs=-1)
@serve_options
@click.pass_context
def command(ctx: click.Context, /, files: tuple[str, ...], **options: Any) -> None:
    """Serve models over HTTP.

    The API is OpenAI's, at /v1 of the address that is printed; /docs has all of it. SIGTERM lets
    running answers end; a second signal ends at once.
    """
    if options["show_config"]:
        show_config(ctx)
        return
    if not files:
        raise UsageError("no file to serve", "Give an .apr file: apr serve model.apr")
    paths = [model_file(file) for file in files]
    names = _names(files, paths, options["model_name"])
    server_options = _server_options(options, names)
    _serve(dict(zip(names, paths, strict=True)), options, server_options)


def _names(files: Sequence[str], paths: Sequence[Path], model_names: Sequence[str]) -> list[str]:
    """Return one name a file. Raises UsageError for duplicates."""
    if len(model_names) > len(files):
        raise UsageError(f"{len(model_names)} model names for {len(files)} files")
    own = [  # a model of the store is called NAME.RECIPE.KEY.apr
        path.stem if Path(file) == path else path.name.rsplit(".", 3)[0]
        for file, path in zip(files, paths, strict=True)
    ]
    names = [*model_names, *own[len(model_names) :]]
    if not all(name.strip() for name in names):
        raise UsageError("a model's name is empty", "Name it by --model-name.")
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise UsageError(f"two models would be called {double!r}", "Name them by --model-name.")
    return names


def _server_options(options: Mapping[str, Any], names: Sequence[str]) -> ServerOptions:
    from apr_serve.http.layers.keys import gather_keys
    from apr_serve.http.options import ServerOptions

    if (options["tls_cert"] is None) != (options["tls_key"] is None):
        raise UsageError("--tls-cert and --tls-key go together")
    for name in ("tls_cert", "tls_key"):
        if options[name] and not options[name].is_file():
            raise NotFound(f"{options[name]}: no such file")
    return ServerOptions(
        **{
            name: options[name]
            for name in (
                "host",
                "port",
                "unix_socket",
                "tls_cert",
                "tls_key",
                "header_timeout",
                "body_timeout",
                "request_timeout",
                "heartbeat",
                "drain_timeout",
                "log_format",
                "log_prompts",
                "strict_parameters",
            )
        },
        api_keys=gather_keys(options["api_key"], options["api_key_file"], os.environ),
        cors_origins=_checked_origins(options["cors_origin"]),
        trusted_proxies=_checked_proxies(options["trusted_proxy"]),
        aliases=_aliases(options["alias"], names),
        max_body=int(options["max_body"] * MIB),
        max_header=int(options["max_header"] * KIB),
    )


def _checked_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """Return the origins after a check of their form: they are compared exactly with browsers'."""
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            raise UsageError(
                f"--cors-origin {origin!r} is no site that a browser names",
                "Write it as https://chat.example or http://localhost:3000, without a path; or *.",
            )
    return tuple(origins)


def _checked_proxies(addresses: Sequence[str]) -> tuple[str, ...]:
    from apr_serve.http.layers.proxies import Proxies

    Proxies(addresses)
    return tuple(addresses)


def _aliases(pairs: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    aliases = {}
    for pair in pairs:
        alias, _, name = pair.partition("=")
        if not alias or name not in names:
            raise UsageError(
                f"--alias {pair!r} is not ALIAS=NAME", f"Names here are: {', '.join(names)}."
            )
        if alias in names or alias in aliases:
            raise UsageError(f"--alias {pair!r}: {alias!r} is a model's name already")
        aliases[alias] = name
    return aliases


def _serve(files: Mapping[str, Path], options: Mapping[str, Any], served: ServerOptions) -> None:
    from apr_serve.chat.service import ChatService
    from apr_serve.http import logs
    from apr_serve.http.app import create_app
    from apr_serve.http.run import bound, check_tls, serve

    show_notices()
    logs.configure(served.log_format)
    check_tls(served)
    with ExitStack() as stack:
        with _signals_held():  # otherwise a socket file could stay behind
            listener = stack.enter_context(bound(served))
        models = _load(files, options, stack)
        engines = _engines(models, options, stack)
        services = {name: ChatService(models[name], engines[name], name) for name in models}
        for service in services.values():
            _try(service)
        app = create_app(services, served)
        lines = [_line(name, services[name]) for name in services]
        _warn_of_strangers(listener, served)
        serve(app, list(engines.values()), listener, served, lambda url: _ready(url, lines))


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold SIGTERM and SIGINT until the end of this context.

    Blocking the signals would not do: another thread may get them, and this one then handles them.
    """
    heard: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: heard.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for asked in heard:
            signal.raise_signal(asked)


def _load(
    files: Mapping[str, Path], options: Mapping[str, Any], stack: ExitStack
) -> dict[str, Model]:
    from apr_core.runtime import load

    models = {}
    for name, file in files.items():
        with sparing_collections(), upload_progress() as uploaded:
            model = load(
                file,
                options["backend"],
                options["threads"],
                strict=options["strict"],
                max_len=options["context"],
                kv_type=options["kv_type"],
                progress=uploaded,
            )
        models[name] = stack.enter_context(model)
    return models


def _engines(
    models: Mapping[str, Model], options: Mapping[str, Any], stack: ExitStack
) -> dict[str, Engine]:
    """Start one engine a model; memory is divided by the need of equally long sequences of each."""
    from apr_serve.engine.engine import Engine
    from apr_serve.engine.warming import warm_up

    for name, model in models.items():
        warm_up(model)
        for fallback in model.report.fallbacks:
            click.echo(f"! {name}: {fallback}", err=True)
    total = _memory(list(models.values())) if options["memory"] is None else options["memory"] * GIB
    needs = {
        name: model.sequence_bytes(min(SAMPLE, model.max_len)) for name, model in models.items()
    }
    engines = {}
    for name, model in models.items():
        share = needs[name] / sum(needs.values())
        _check_room(name, model, int(total * share))
        cache = None if options["cache"] is None else int(options["cache"] * GIB * share)
        engines[name] = Engine(
            model,
            slots=options["slots"],
            memory_bytes=int(total * share),
            cache_bytes=cache,
            queue_limit=options["queue"],
        )
        stack.callback(engines[name].close)
    return engines


def _memory(models: Sequence[Model]) -> int:
    """Return the bytes for sequences and prefixes of all models, which are on the same backend."""
    from apr_serve.engine.memory import default_limit

    weights = sum(model.file.path.stat().st_size for model in models)
    return default_limit(models[0].backend, weights, sum(model.step_bytes() for model in models))


def _check_room(name: str, model: Model, memory: int) -> None:
    """Raise UsageError if not even a short sequence could ever run."""
    length = min(SHORT, model.max_len)
    needed = model.sequence_bytes(length)
    if memory < needed:
        raise UsageError(
            f"{name} gets {human_bytes(memory)} for sequences and prefixes, and one sequence of "
            f"{length} tokens takes {human_bytes(needed)}",
            "Give --memory more GiB.",
        )


def _try(service: ChatService) -> None:
    """Render a prompt and warn if that fails; prepare what grammars need."""
    from apr_serve.grammar import grammar
    from apr_serve.http.errors import ApiError
    from apr_serve.openai.chat_request import ChatCompletionRequest

    try:
        service.prompt_ids(ChatCompletionRequest.model_validate(HELLO))
        grammar.prepare(service.model.tokenizer)
    except (ApiError, AprError) as error:
        click.echo(f"! {service.model_id}: {error}", err=True)


def _warn_of_strangers(listener: socket, served: ServerOptions) -> None:
    """Warn if other machines may send requests without a key."""
    if served.api_keys or served.unix_socket:
        return
    host = listener.getsockname()[0]
    if not ip_address(host.partition("%")[0]).is_loopback:
        click.echo(f"! whoever reaches {host} may use this: there is no API key", err=True)


def _line(name: str, service: ChatService) -> str:
    stats = service.engine.stats()
    return (
        f"  {name}: {service.model.backend.name}, {stats.slots} slots, context "
        f"{service.model.max_len}, {human_bytes(stats.memory_limit)} for sequences and prefixes"
    )


def _ready(url: str, lines: Sequence[str]) -> None:
    pages = f"chat: {url}/  API: {url}/v1  its reference: {url}/docs  load: {url}/status"
    more = [f"  {pages}"] if url.startswith("http") else []  # a socket file opens in no browser
    click.echo("\n".join([f"serving on {url}", *lines, *more]))
