"""CPU that serving costs a streamed token, beside the engine.

The bundled model's tokenizer and template, and in place of its engine one that delivers tokens at a
steady rate. The process's CPU time while clients of another process stream, less that of the same
deliveries to nobody, by tokens. Criterion: below 0.3 ms.

    python -m benchmarks.server_overhead
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from apr_core import Model, load
from apr_core.generate.deltas import Delta, Usage
from apr_serve.engine.interface import EngineRequest, EngineStats

TOKENS = 400  # a stream
STEP_S = 0.005
ROUNDS = 3
LIMIT_MS = 0.3
WORDS = (" two", " and", " two", " make", " four", ".", "\n")
CLIENT = """
import httpx, json, sys, threading
url, streams, body = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
def one(found):
    with httpx.stream("POST", url, json=body, timeout=600) as answer:
        found.append(sum(line.startswith("data: {") for line in answer.iter_lines()))
found = []
threads = [threading.Thread(target=one, args=(found,)) for _ in range(streams)]
[t.start() for t in threads]; [t.join() for t in threads]
print(json.dumps(found))
"""


class SteadyEngine:
    """Delivers one token of every request each step, and computes nothing."""

    def __init__(self) -> None:
        self.flushed: Callable[[], None] = lambda: None
        self._new: deque[tuple[Callable[[Sequence[Delta]], None], list[int]]] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, request: EngineRequest, deliver: Any) -> Any:
        """Queue a request."""
        self._new.append((deliver, [0]))
        return self

    def cancel(self) -> None:
        """Nothing ends early here."""

    def _run(self) -> None:
        running: list[tuple[Any, list[int]]] = []
        while not self._stop.is_set():
            while self._new:
                running.append(self._new.popleft())
            for deliver, count in running:
                count[0] += 1
                deliver([_delta(count[0])])
            self.flushed()
            running = [job for job in running if job[1][0] < TOKENS]
            time.sleep(STEP_S)

    def stats(self) -> EngineStats:
        """None to tell."""
        return EngineStats()

    def drain(self, timeout_s: float) -> bool:
        """Nothing is left when clients have gone."""
        return True

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()


def _delta(count: int) -> Delta:
    text = WORDS[count % len(WORDS)]
    if count < TOKENS:
        return Delta(0, text, ids=(count,))
    usage = Usage(20, 0, TOKENS, 0)
    return Delta(0, text, ids=(count,), finish_reason="length", ended_by="max_tokens", usage=usage)


def alone(streams: int) -> float:
    """CPU seconds of the engine by itself."""
    engine, left = SteadyEngine(), threading.Semaphore(0)

    def deliver(deltas: Sequence[Delta]) -> None:
        if deltas[-1].finish_reason:
            left.release()

    started = time.process_time()
    for _ in range(streams):
        engine.submit(EngineRequest([1]), deliver)
    for _ in range(streams):
        left.acquire()
    spent = time.process_time() - started
    engine.close()
    return spent


def served(model: Model, streams: int, more: dict[str, Any]) -> float:
    """CPU seconds of this process while so many clients stream; the median of rounds."""
    from apr_serve.chat.service import ChatService
    from apr_serve.http.app import create_app
    from apr_serve.http.options import ServerOptions
    from apr_serve.http.run import bound, serve

    engine: Any = SteadyEngine()
    options = ServerOptions(port=0)
    app = create_app({"sums": ChatService(model, engine, "sums")}, options)
    spent: list[float] = []

    def clients(url: str) -> None:
        body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True, **more}
        for number in range(1 + ROUNDS):  # the first warms up
            started = time.process_time()
            done = subprocess.run(
                [sys.executable, "-c", CLIENT, url + "/v1/chat/completions",
                 str(streams), json.dumps(body)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            if number:
                spent.append(time.process_time() - started)
            events = json.loads(done.stdout)
            assert len(events) == streams and min(events) > TOKENS / 2, events
        os.kill(os.getpid(), signal.SIGTERM)

    def ready(url: str) -> None:
        threading.Thread(target=clients, args=(url,)).start()

    serve(app, [engine], bound(options), options, ready)
    engine.close()
    return statistics.median(spent)


def main() -> None:
    """Print a line a case; exit 1 if one is over the limit."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    cases: list[tuple[int, str, dict[str, Any]]] = [
        (1, "chat", {}), (8, "chat", {}), (32, "chat", {}), (8, "with tools", {"tools": [tool]}),
    ]  # fmt: skip
    worst = 0.0
    with TemporaryDirectory() as folder:
        file = Path(folder) / "sums.apr"
        subprocess.run(
            [sys.executable, "-m", "apr_core.cli", "import", "demo://sums", "-o", str(file)],
            check=True,
            capture_output=True,
        )
        with load(file) as model:
            for streams, name, more in cases:
                cost = (served(model, streams, more) - alone(streams)) / (streams * TOKENS)
                worst = max(worst, cost * 1000)
                print(f"{streams:3} streams, {name:10}  {cost * 1000:.3f} ms of CPU a token")
    print(f"{'ok' if worst < LIMIT_MS else 'TOO MUCH'}: at most {worst:.3f}, limit {LIMIT_MS}")
    sys.exit(worst >= LIMIT_MS)


if __name__ == "__main__":
    main()
