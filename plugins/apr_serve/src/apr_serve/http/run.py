"""Serving in this process: the socket, the HTTP server on it, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from fastapi import FastAPI
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.net import SocketHolder  # type: ignore[attr-defined]
from granian.server.embed import Server

from apr_core.plugin import InputOutputError, UsageError
from apr_serve.engine.interface import GenerationEngine
from apr_serve.http.options import ServerOptions

BACKLOG = 1024
CONNECTIONS = 16_384  # open at once; more of them wait
OTHER_FILES = 256  # models, logs, files that libraries open
LAST_WORDS = 5.0  # seconds for responses to end after the engines
AFTERWARDS = 0.5  # seconds for the rest: a body that never comes, a client that does not read
AT_ONCE = 130  # exit code after a second signal


def serve(
    app: FastAPI,
    engines: Sequence[GenerationEngine],
    listener: socket.socket,
    options: ServerOptions,
    ready: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process at once.

    `listener` comes from `bound`, and is closed at the end. `ready` is called with the URL once
    requests are taken. Raises InputOutputError if another server was faster to take the address.
    """
    with listener:
        server = _server(app, listener, options)
        with _telling(options):
            if isinstance(listener, _SocketFile) and not listener.is_there():
                raise OSError(errno.EADDRINUSE, "another server was faster")
            listener.listen(BACKLOG)
        asyncio.run(_run(app, engines, server, options, lambda: ready(_url(listener, options))))


def _most_connections() -> int:
    """Return how many connections may be open at once, after raising the limit on open files."""
    wanted = CONNECTIONS + OTHER_FILES
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (wanted if limit == resource.RLIM_INFINITY else limit for limit in limits)
    if soft < min(hard, wanted):
        soft = min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limits[1]))
    return max(16, min(soft, wanted) - OTHER_FILES)


def check_tls(options: ServerOptions) -> None:
    """Raise UsageError unless certificate and key match, if there are any."""
    if options.tls_cert is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.tls_cert, options.tls_key, _no_password)
    except OSError as error:  # also what the ssl module raises
        raise UsageError(
            f"the TLS certificate or key cannot be used: {error}",
            "Both are PEM files, and the key belongs to the certificate.",
        ) from error


def _no_password() -> NoReturn:
    """Raise UsageError for an encrypted key, instead of asking for its password."""
    raise UsageError(
        "the TLS key is encrypted",
        "Decrypt it (openssl pkey -in KEY -out PLAIN) into a file that only the server may read.",
    )


def bound(options: ServerOptions) -> socket.socket:
    """Return a socket bound to the address in the options, not yet listening.

    Bound before models are loaded, so that an address in use is known at once: InputOutputError.
    """
    with _telling(options):
        if options.unix_socket:
            return _unix(options.unix_socket)
        family, _, _, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _bound(listener, address)


@contextmanager
def _telling(options: ServerOptions) -> Iterator[None]:
    """Name the address in errors about it."""
    try:
        yield
    except OSError as error:
        where = options.unix_socket or f"{options.host}:{options.port}"
        if error.errno == errno.EADDRINUSE:
            raise InputOutputError(f"{where} is already in use", _hint(options, error)) from error
        raise InputOutputError(
            f"cannot listen on {where}: {error.strerror or error}", _hint(options, error)
        ) from error


def _hint(options: ServerOptions, error: OSError) -> str:
    if options.unix_socket:
        return "Choose another --unix-socket."
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
        return "Choose another --port, or 0 for any that is free."
    return "Choose a --host that is an address of this machine, or 0.0.0.0 for all."


def _bound(listener: socket.socket, address: Any) -> socket.socket:
    try:
        listener.bind(address)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _unix(path: Path) -> socket.socket:
    """Bind a socket file for its owner and group only; replace one that nobody listens on."""
    if path.exists() and not path.is_socket():
        raise OSError(errno.EEXIST, "there is a file with this name")
    listener = _SocketFile(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except FileNotFoundError:
            pass
        else:
            raise OSError(errno.EADDRINUSE, "in use")
    before = os.umask(0o117)
    try:
        _bound(listener, str(path))
        listener.identity = path.stat()
        return listener
    finally:
        os.umask(before)


class _SocketFile(socket.socket):
    """A unix socket that removes its file when it is closed, if the file is still its own."""

    def __init__(self, path: Path) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = path
        self.identity: os.stat_result | None = None

    def is_there(self) -> bool:
        """Return True if the file is still its own: another server may have replaced it."""
        try:
            return self.identity is not None and os.path.samestat(self.identity, self._path.stat())
        except OSError:
            return False

    def close(self) -> None:
        """Close it, and remove the file."""
        if self.is_there():
            self._path.unlink(missing_ok=True)
        super().close()


class _Embedded(Server):
    """Granian on a socket that is already bound: its own would share the port with others.

    It has no public way to give it one, so two of its private members, read in 2.8, are set here;
    the requirement is for that minor version, and tests start it for every kind of socket.
    """

    def __init__(self, listener: socket.socket, **settings: Any) -> None:
        super().__init__(**settings)
        self._listener = listener

    def _init_shared_socket(self) -> None:
        is_unix = self._listener.family == socket.AF_UNIX
        make: Any = SocketHolder  # its stub declares no arguments
        self._shd = make(os.dup(self._listener.fileno()), is_unix, BACKLOG)

    def end(self) -> None:
        """Stop accepting, and let running responses end."""
        self.interrupt_signal = True
        self.main_loop_interrupt.set()


def _server(app: FastAPI, listener: socket.socket, options: ServerOptions) -> _Embedded:
    return _Embedded(
        listener,
        target=app,
        interface=Interfaces.ASGI,
        # detecting the version would wait without end, whatever the timeout
        http=HTTPModes.http1,
        websockets=False,
        backlog=BACKLOG,
        backpressure=_most_connections(),
        http1_settings=HTTP1Settings(
            header_read_timeout=int(options.header_timeout * 1000),
            max_buffer_size=max(8192, options.max_header),
        ),
        log_enabled=False,
        ssl_cert=options.tls_cert,
        ssl_key=options.tls_key,
        ssl_protocol_min="tls1.2",
    )


async def _run(
    app: FastAPI,
    engines: Sequence[GenerationEngine],
    server: _Embedded,
    options: ServerOptions,
    ready: Callable[[], None],
) -> None:
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()

    def on_signal() -> None:
        if stopping.is_set():
            sys.stderr.flush()
            os._exit(AT_ONCE)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    serving = asyncio.ensure_future(server.serve())
    await asyncio.sleep(0)  # the server's first step is to accept connections
    if not serving.done():
        ready()
    signalled = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({serving, signalled}, return_when=asyncio.FIRST_COMPLETED)
    if not serving.done():
        await _drain(app, engines, options.drain_timeout)
        server.end()
        had_their_time = app.state.server.open_requests
        await asyncio.wait({serving}, timeout=AFTERWARDS if had_their_time else LAST_WORDS)
    signalled.cancel()
    if serving.done():
        serving.result()
    else:  # the server sets a result on a future that is cancelled by then
        loop.set_exception_handler(lambda loop, context: None)


async def _drain(app: FastAPI, engines: Sequence[GenerationEngine], timeout: float) -> None:
    """Take no more, let running requests end, then wait until their last bytes are sent."""
    state = app.state.server
    state.draining = True
    await asyncio.gather(*(asyncio.to_thread(engine.drain, timeout) for engine in engines))
    deadline = asyncio.get_running_loop().time() + LAST_WORDS
    while state.open_requests and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)


def _url(listener: socket.socket, options: ServerOptions) -> str:
    if options.unix_socket:
        return f"unix:{options.unix_socket}"
    host, port = listener.getsockname()[:2]
    scheme = "https" if options.tls_cert else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
