"""Imports hooks modules in a process of their own, and survives whatever they do there.

The child says which plugin it begins with, then what came of it. If it falls silent or ends, the
plugin it was at is the reason; it is stopped, and another child goes on with the rest.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apr_core.plugin_memory import Scanned, stamps
from apr_core.plugin_rows import Found, as_plain, checked_collection, from_plain

PATIENCE = 5.0  # seconds for one hooks module; a light one takes a hundredth of one
SAY_SO = 1.5  # seconds after which a person wonders what is going on
CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import apr_core.plugin_scan as s"


class Stopped(Exception):
    """The child will say no more; why not."""


def scan(founds: Sequence[Found], patience: float = PATIENCE) -> dict[str, Scanned]:
    """The rows of plugins, by name."""
    if not sys.executable:  # embedded: there is no interpreter to start
        return {found.name: examined(found) for found in founds}
    results: dict[str, Scanned] = {}
    while len(results) < len(founds):
        results |= _one_child([f for f in founds if f.name not in results], patience)
    for found in founds if len(founds) > 1 else ():
        scanned = results[found.name]
        if scanned.row.status == "broken" and not scanned.stopped:
            # another plugin may have spoilt the interpreter they shared
            results |= _one_child([found], patience)
    return results


def _one_child(founds: Sequence[Found], patience: float) -> dict[str, Scanned]:
    """What one child finds out, up to and with the first plugin that stops it."""
    results: dict[str, Scanned] = {}
    rest = iter(founds)
    found = next(rest, None)
    child = _start(founds)
    try:
        for message in _messages(child, patience):
            if message is None:
                print(f"importing plugin {found and found.name} takes long ...", file=sys.stderr)
            elif found:
                results[found.name] = _scanned(found, message)
                found = next(rest, None)
    except Stopped as stopped:
        if found:
            row = found.row("broken", f"importing its hooks module {stopped}")
            results[found.name] = Scanned(row, stamps(_origin(found.value)), stopped=True)
    finally:
        _stop(child)
    return results


def _start(founds: Sequence[Found]) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", f"{CHILD}; s.main()", json.dumps(sys.path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    assert child.stdin
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(json.dumps([asdict(found) for found in founds]).encode())
        child.stdin.close()
    return child


def _scanned(found: Found, message: Mapping[str, Any]) -> Scanned:
    declarations = tuple(from_plain(d) for d in message["declarations"])
    row = found.row(message["status"], message["reason"], declarations)
    return Scanned(row, tuple((str(p), int(m), int(s)) for p, m, s in message["files"]))


def _messages(child: subprocess.Popen[bytes], patience: float) -> Iterator[dict[str, Any] | None]:
    """The child's lines, and None when it takes long. Raises Stopped when there will be no more."""
    assert child.stdout
    waiting, buffer = selectors.DefaultSelector(), b""
    waiting.register(child.stdout, selectors.EVENT_READ)
    until, said = time.monotonic() + patience, False
    while True:
        if waiting.select(min(SAY_SO, max(0.0, until - time.monotonic()))):
            part = os.read(child.stdout.fileno(), 1 << 16)
            if not part:
                raise Stopped(_end(child.wait()))
            *lines, buffer = (buffer + part).split(b"\n")
            yield from map(_message, lines)
            until, said = time.monotonic() + patience, False
        elif time.monotonic() >= until:
            raise Stopped(f"took more than {patience:g} s")
        elif not said:
            said = True
            yield None


def _message(line: bytes) -> dict[str, Any]:
    try:
        message: dict[str, Any] = json.loads(line)
    except ValueError:
        raise Stopped("wrote into a file that is not its own") from None
    return message


def _end(code: int) -> str:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"ended the process ({how})"


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()
    if child.stdout:
        child.stdout.close()


def main() -> None:
    """The child: plugins come as JSON on stdin, a line goes to what was stdout for each."""
    founds = [Found(**record) for record in json.load(sys.stdin)]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # a plugin that prints or asks finds nobody
        os.dup2(nowhere, descriptor)
    for found in founds:
        scanned = examined(found)
        answer = {
            "status": scanned.row.status,
            "reason": scanned.row.reason,
            "declarations": [as_plain(d) for d in scanned.row.declarations],
            "files": scanned.files,
        }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # without what plugins may have left to run at the end


def examined(found: Found) -> Scanned:
    """A plugin's row, imported in this process, and its files."""
    row = checked_collection(found)
    package = found.value.partition(":")[0].partition(".")[0].strip()
    loaded = [
        getattr(module, "__file__", None) for name, module in list(sys.modules.items())
        if name.partition(".")[0] == package
    ]  # fmt: skip
    files = {Path(file) for file in loaded if isinstance(file, str)} | _origin(found.value)
    return Scanned(row, stamps(files))


def _origin(value: str) -> set[Path]:
    """The file of a hooks module, found without importing it; nothing if there is none."""
    module = value.partition(":")[0].strip()
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError, AttributeError):
        return set()
    if spec is None or not spec.origin:
        return set()
    inside = module.split(".")[1:]
    places = [Path(p).joinpath(*inside) for p in spec.submodule_search_locations or ()]
    files = [place.with_suffix(".py") for place in places] if inside else []
    return {Path(spec.origin), *(file for file in files if file.exists())}
