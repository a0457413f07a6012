"""What the engine of `apr serve` does for many clients: `python benchmarks/serving.py [FILE.apr]`.

A chat of ten turns with and without kept prefixes; eight streams against one; how even four streams
run while a prompt of 4,000 tokens is read. Without a file it builds a checkpoint of Qwen3.5-0.8B's
size with random weights and imports it as q4_k_m. Every comparison is made in turns, in one run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apr_core import Model, load
from apr_core.generate.deltas import Delta
from apr_serve.engine.engine import Engine
from apr_serve.engine.interface import EngineRequest
from benchmarks.checkpoints import write
from benchmarks.files import imported

TURNS, HISTORY, ANSWER = 10, 2000, 150  # turns, tokens before the last, of which answers
STREAM = 64  # tokens of a stream
LONG = 4000  # tokens of a prompt that is read meanwhile


class Stream:
    """One request: when its tokens came, and which."""

    def __init__(self, engine: Engine, ids: list[int], tokens: int, use_cache: bool = True) -> None:
        self.times: list[float] = []
        self.ids: list[int] = []
        self.cached = 0
        self.ended = threading.Event()
        request = EngineRequest(
            ids,
            max_tokens=tokens,
            ignore_stop_tokens=True,
            detect_repetition=False,
            use_cache=use_cache,
        )
        self.started = time.perf_counter()
        self.ticket = engine.submit(request, self._deliver)

    def _deliver(self, deltas: Sequence[Delta]) -> None:
        now = time.perf_counter()
        self.times.append(now)
        for delta in deltas:
            self.ids += delta.ids
            if delta.usage:
                self.cached = delta.usage.cached_tokens
                self.ended.set()

    def wait(self) -> Stream:
        """Until its end."""
        self.ended.wait()
        return self

    @property
    def first_s(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.started

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return np.diff(self.times).tolist()


def text(rng: np.random.Generator, count: int) -> str:
    """Letters, each of which is a token."""
    return "".join(chr(97 + i) for i in rng.integers(0, 26, count))


def chats(model: Model) -> list[list[int]]:
    """The prompts of all turns: the last has HISTORY tokens of history."""
    rng = np.random.default_rng(0)
    question = HISTORY // (TURNS - 1) - ANSWER
    messages: list[dict[str, str]] = []
    prompts = []
    for _ in range(TURNS):
        messages.append({"role": "user", "content": text(rng, question)})
        prompts.append(model.chat_ids(messages))
        messages.append({"role": "assistant", "content": text(rng, ANSWER)})
    return prompts


def prefix_reuse(model: Model, rounds: int) -> None:
    """Time to the first token of the last turn, after the others, against reading all of it."""
    prompts = chats(model)
    with_cache, without, same = [], [], True
    for _ in range(rounds):
        engine = Engine(model)
        try:
            for prompt in prompts[:-1]:
                Stream(engine, prompt, 1).wait()
            last = Stream(engine, prompts[-1], 16).wait()
            whole = Stream(engine, prompts[-1], 16, use_cache=False).wait()
        finally:
            engine.close()
        with_cache.append(last.first_s)
        without.append(whole.first_s)
        same = same and last.ids == whole.ids
    alone = model.generate(prompts[-1], max_tokens=16).ids
    a, b = statistics.median(with_cache), statistics.median(without)
    print(f"\nTurn {TURNS} of a chat, {len(prompts[-1])} tokens, {last.cached} of them kept:")
    print(f"  first token after {a:.2f} s, {b:.2f} s when all is read: {a / b:.1%} (at most 15%)")
    print(f"  same tokens: {same and last.ids == alone}")


def throughput(model: Model, rounds: int) -> None:
    """Tokens a second of eight streams and of one."""
    rng = np.random.default_rng(1)
    speeds: dict[int, list[float]] = {1: [], 8: []}
    engine = Engine(model, cache_bytes=0)
    try:
        for _ in range(rounds + 1):
            for count in speeds:
                prompts = [rng.integers(0, 256, 32).tolist() for _ in range(count)]
                streams = [Stream(engine, prompt, STREAM) for prompt in prompts]
                for stream in streams:
                    stream.wait()
                begin = max(s.times[0] for s in streams)
                end = min(s.times[-1] for s in streams)
                tokens = sum(begin < t <= end for s in streams for t in s.times)
                speeds[count].append(tokens / (end - begin))
    finally:
        engine.close()
    one, eight = (statistics.median(speeds[count][1:]) for count in (1, 8))
    print(f"\nStreams: {one:.1f} tokens/s alone, {eight:.1f} by eight,")
    print(f"  {eight / one:.2f}x (at least 3x)")


def evenness(model: Model, rounds: int) -> None:
    """The 95th percentile of the time between tokens of four streams, and with a long prompt."""
    rng = np.random.default_rng(2)
    quiet: list[float] = []
    busy: list[float] = []
    read = 0.0
    engine = Engine(model, cache_bytes=0)
    try:
        for _ in range(rounds):
            streams = [Stream(engine, rng.integers(0, 256, 32).tolist(), 4096) for _ in range(4)]
            while min(len(s.times) for s in streams) < 100:
                time.sleep(0.05)
            begin = time.perf_counter()
            long = Stream(engine, rng.integers(0, 256, LONG).tolist(), 1).wait()
            end = time.perf_counter()
            read = long.first_s
            for stream in streams:
                stream.ticket.cancel()
                stream.wait()
                times = np.array(stream.times[20:])
                gaps, after = np.diff(times), times[1:]
                quiet += gaps[after <= begin].tolist()
                busy += gaps[(after > begin) & (after <= end)].tolist()
    finally:
        engine.close()
    a, b = (1e3 * float(np.quantile(gaps, 0.95)) for gaps in (quiet, busy))
    print(
        f"\nFour streams: a token every {a:.0f} ms (95th percentile), {b:.0f} ms while a prompt of"
    )
    print(f"  {LONG} tokens is read: {b / a:.2f}x (less than 2x); it takes {read:.1f} s")


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--size", default="0.8b", help="of the checkpoint that is built")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["prefix", "throughput", "evenness"])
    options = parser.parse_args()
    parts = {"prefix": prefix_reuse, "throughput": throughput, "evenness": evenness}
    with tempfile.TemporaryDirectory() as folder:
        path = options.file
        if path is None:
            checkpoint = write(options.size, Path(folder) / "checkpoint")
            path = imported(checkpoint, Path(folder) / "model.apr", "q4_k_m")
        with load(path) as model:
            for name in options.only:
                parts[name](model, options.rounds)


if __name__ == "__main__":
    main()
