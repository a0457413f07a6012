"""A server to test: the bundled model, imported once, served by `apr serve` on a free port."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import httpx

START_S = 600.0  # a first start may compile kernels


@dataclass
class Running:
    """A server process. `url` has no slash at its end; `lines` is what it printed, by stream."""

    process: subprocess.Popen
    url: str = ""
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)

    def post(self, path, body, **options):
        return httpx.post(self.url + path, json=body, timeout=60, **options)

    def get(self, path, **options):
        return httpx.get(self.url + path, timeout=60, **options)

    def metric(self, name):
        """The value of a metric of the one model that is served."""
        lines = self.get("/metrics").text.splitlines()
        (value,) = [line.split()[-1] for line in lines if line.startswith(name + "{")]
        return float(value)

    def cpu_s(self):
        """Seconds of processor time it has taken: what is busy beside it makes them no more."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def terminate(self, timeout=60.0):
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


@cache
def demo_model():
    """The bundled model as an .apr file, for as long as this process lives."""
    folder = Path(mkdtemp(prefix="apr-serving-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "apr_core.cli", "import", "demo://sums", "--quantize", "q4k",
         "-o", str(folder / "sums.apr")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "sums.apr"


@cache
def shared():
    """One server for all tests of this process that only ask, with 8 slots and no keys."""
    running = start()
    atexit.register(running.process.kill)
    return wait_until_ready(running)


def openai_client():
    """OpenAI's own client, unmodified, of the shared server."""
    import openai

    return openai.OpenAI(base_url=shared().url + "/v1", api_key="none", max_retries=0)


def start(*arguments, files=None, **environment):
    """A server that may not be ready, or may end at once."""
    files = [demo_model()] if files is None else files
    own = [sys.executable, "-m", "apr_core.cli"]
    env = os.environ | {"APR_CONFIG": os.devnull} | environment
    return started([*own, "serve", *files, *arguments], env)


def started(command, env):
    """The server that a command runs, on a free port if the command names none."""
    words = [str(word) for word in command]
    process = subprocess.Popen(
        words if "--port" in words else [*words, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    running = Running(process)
    for stream, lines in ((process.stdout, running.out), (process.stderr, running.err)):
        threading.Thread(target=_gather, args=(stream, lines), daemon=True).start()
    return running


def _gather(stream, lines):
    for line in stream:
        lines.append(line.rstrip("\n"))


def wait_until_ready(running):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        notice = next((line for line in running.out if line.startswith("serving on ")), None)
        if notice:
            running.url = notice.removeprefix("serving on ")
            return running
        assert running.process.poll() is None, "\n".join(running.err)
        time.sleep(0.02)
    raise AssertionError("the server did not start: " + "\n".join(running.err))


@contextmanager
def serving(*arguments, files=None, **environment):
    """A server that is ready, and is killed at the end."""
    running = start(*arguments, files=files, **environment)
    try:
        yield wait_until_ready(running)
    finally:
        running.process.kill()
        running.process.wait()
