"""Imports hooks modules in a process of their own, and survives whatever they do there.

The child says which plugin it begins with, then what came of it. If it falls silent or ends, the
plugin it was at is the reason; it is stopped, and another child goes on with the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apr_core.plugin_memory import Scanned, as_record, scanned_from, stamps
from apr_core.plugin_rows import Found, checked_collection

PATIENCE = 5.0  # seconds for one hooks module; a light one takes a hundredth of one
STARTING = 60.0  # seconds for the child itself, whose own imports may be the machine's first
PR_SET_PDEATHSIG = 1  # of Linux's prctl
SAY_SO = 1.5  # seconds after which a person wonders what is going on
LONGEST_LINE = 1 << 24  # characters of one answer
CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import apr_core.plugin_scan as s"
MOST_FILES = 500  # of a broken package that are watched for a change
CORE = Path(__file__).parent
STDLIB = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
AGAIN = "`apr plugins list --refresh` tries again"
STRANGER = "wrote into a file that is not its own"


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
        if scanned.row.status == "broken" and not scanned.stops:
            # another plugin may have spoilt the interpreter they shared
            results |= _one_child([found], patience)
    return results


def _one_child(founds: Sequence[Found], patience: float) -> dict[str, Scanned]:
    """What one child finds out, up to and with the first plugin that stops it."""
    results: dict[str, Scanned] = {}
    child = _start(founds)
    lines = _lines(child)
    found = founds[0]
    try:
        if _answer(child, lines, STARTING, "plugins") != {}:
            raise Stopped(STRANGER)
        for found in founds:
            message = _answer(child, lines, patience, f"plugin {found.name}")
            results[found.name] = _scanned(found, message)
    except Stopped as stopped:
        row = found.row("broken", f"importing its hooks module {stopped} ({AGAIN})")
        results[found.name] = Scanned(row, stamps(_package_files(found.value)), stops=1)
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


def _lines(child: subprocess.Popen[bytes]) -> queue.Queue[bytes]:
    """The lines a child writes, as a thread reads them: pipes cannot be waited for everywhere."""
    lines: queue.Queue[bytes] = queue.Queue()

    def read() -> None:
        assert child.stdout
        with contextlib.suppress(ValueError, OSError), child.stdout as answers:
            while line := answers.readline(LONGEST_LINE):
                lines.put(line)
        lines.put(b"")

    threading.Thread(target=read, daemon=True).start()
    return lines


def _answer(
    child: subprocess.Popen[bytes], lines: queue.Queue[bytes], patience: float, what: str
) -> dict[str, Any]:
    """The child's next answer. Raises Stopped when there will be none."""
    until, said = time.monotonic() + patience, False
    while True:
        with contextlib.suppress(queue.Empty):
            return _message(child, lines.get(timeout=min(SAY_SO, patience)))
        if child.poll() is not None and lines.empty():  # what it left running holds the pipe
            raise Stopped(_end(child.returncode))
        if time.monotonic() >= until:
            raise Stopped(f"took more than {patience:g} s")
        if not said:
            said = True
            print(f"importing {what} takes long ...", file=sys.stderr)


def _message(child: subprocess.Popen[bytes], line: bytes) -> dict[str, Any]:
    """What a line says, if the child wrote it. Raises Stopped."""
    if not line.endswith(b"\n"):
        raise Stopped(_end(child.wait()))
    try:
        message: dict[str, Any] = json.loads(line)
        if message.pop("from") != child.pid:
            raise Stopped(STRANGER)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Stopped(STRANGER) from None
    return message


def _scanned(found: Found, message: Mapping[str, Any]) -> Scanned:
    try:
        return scanned_from(found, message)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Stopped(STRANGER) from None


def _end(code: int) -> str:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"ended the process ({how})"


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child and what it started. Its pipe is closed by the thread that reads it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()


def main() -> None:
    """The child: plugins come as JSON on stdin, a line goes to what was stdout for each."""
    founds = [Found(**record) for record in json.load(sys.stdin)]
    me = os.getpid()
    _end_with_parent(len(founds))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # a plugin that prints or asks finds nobody
        os.dup2(nowhere, descriptor)
    dumps, getpid, leave = json.dumps, os.getpid, os._exit  # as they are before plugins come
    answers.write(dumps({"from": me}) + "\n")
    answers.flush()
    for found in founds:
        scanned = examined(found)
        if getpid() != me:  # a plugin forked: one of us goes on
            leave(0)
        answers.write(dumps({"from": me, **as_record(scanned)}) + "\n")
        answers.flush()
    leave(0)  # without what plugins may have left to run at the end


def _end_with_parent(plugins: int) -> None:
    """Should the parent be killed, a plugin that hangs must not go on for ever."""
    if hasattr(signal, "alarm"):
        signal.alarm(int(STARTING + 2 * PATIENCE * plugins))
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def examined(found: Found) -> Scanned:
    """A plugin's row, imported in this process, and the files it depends on.

    Those are the modules that came with it; should it be broken, also every file of its package and
    those its error went through: whatever repairs it is among them.
    """
    before = set(sys.modules)
    raised: set[Path] = set()
    row = checked_collection(found, on_error=lambda: raised.update(_files_of_error()))
    package = _package(found.value)
    loaded = [
        getattr(module, "__file__", None) for name, module in list(sys.modules.items())
        if name not in before or name.partition(".")[0] == package
    ]  # fmt: skip
    files = {Path(file) for file in loaded if isinstance(file, str)} | _origin(found.value)
    if row.status == "broken":
        files |= _package_files(found.value) | raised
    return Scanned(row, stamps({file for file in files if not _of_python(file)}))


def _of_python(file: Path) -> bool:
    """Whether a file is of the standard library or of the core: those no plugin brings."""
    if CORE in file.parents:
        return True
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    return not installed and any(folder in file.parents for folder in STDLIB)


def _files_of_error() -> set[Path]:
    """The files that the error being handled went through, and the one that does not parse."""
    error = sys.exc_info()[1]
    files = {
        Path(frame.filename)
        for frame in traceback.extract_tb(error.__traceback__ if error else None)
    }
    if isinstance(error, SyntaxError) and error.filename:
        files.add(Path(error.filename))
    return {file for file in files if file.is_file()}


def _package(value: str) -> str:
    """The top package of an entry point's module."""
    return value.partition(":")[0].strip().partition(".")[0]


def _package_files(value: str) -> set[Path]:
    """The files of an entry point's package and its folders, a few hundred at most."""
    files = _origin(value)
    for place in _places(_package(value)):
        inside = (path for path in place.rglob("*") if "__pycache__" not in path.parts)
        files |= {place, *itertools.islice(inside, MOST_FILES)}
    return files


def _places(package: str) -> list[Path]:
    """The folders of a package, found without importing it; none if it is a module."""
    try:
        spec = importlib.util.find_spec(package)
        return [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    except (ImportError, ValueError, AttributeError):
        return []


def _origin(value: str) -> set[Path]:
    """The file of a hooks module and of its package, found without importing them."""
    inside = value.partition(":")[0].strip().split(".")[1:]
    files = {
        place.joinpath(*inside).with_suffix(".py") if inside else place / "__init__.py"
        for place in _places(_package(value))
    }
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(_package(value))
        files |= {Path(spec.origin)} if spec and spec.origin else set()
    return {file for file in files if file.exists()}
