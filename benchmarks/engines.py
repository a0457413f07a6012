"""apr, llama.cpp and transformers behind one face, each in a process of its own.

They are asked in turns, so that what slows the machine down slows all of them. Without its peer's
package an engine raises ImportError, and the benchmark says so. $BENCH_CLOCK=cpu counts the seconds
of the processor instead of those of the clock: with one thread, what a busy machine leaves fair.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 5
now = time.process_time if os.environ.get("BENCH_CLOCK") == "cpu" else time.perf_counter


class Engine:
    """One engine. `tokens` below are ids; times are seconds."""

    def __init__(self, path: str, threads: int) -> None:
        raise NotImplementedError

    def prefill(self, tokens: list[int]) -> None:
        """Forget everything, then read the tokens; only the last one's logits are needed."""
        raise NotImplementedError

    def step(self, token: int) -> None:
        """One more token."""
        raise NotImplementedError

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """Of every token [T, vocab]."""
        raise NotImplementedError

    def timed_prefill(self, tokens: list[int]) -> float:
        """Seconds of `prefill`."""
        started = now()
        self.prefill(tokens)
        return now() - started

    def timed_steps(self, count: int) -> float:
        """Median seconds of a step, over `count` steps after what was read."""
        times = []
        for i in range(count):
            started = now()
            self.step(i % 200)
            times.append(now() - started)
        return float(np.median(times))


class Apr(Engine):
    """This project."""

    def __init__(self, path: str, threads: int) -> None:
        from apr_core import load

        self.model = load(path, threads=threads)
        self.slots: list[int] = []

    def prefill(self, tokens: list[int]) -> None:
        """See Engine."""
        for slot in self.slots:
            self.model.free_slot(slot)
        self.slots = [self.model.new_slot()]
        for i in range(0, len(tokens), 512):
            self.model.forward([(self.slots[0], tokens[i : i + 512])])

    def step(self, token: int) -> None:
        """See Engine."""
        self.model.forward([(slot, [token]) for slot in self.slots])

    def widen(self, batch: int) -> None:
        """Sequences beside the first, so that `step` advances `batch` of them."""
        while len(self.slots) < batch:
            self.slots.append(self.model.new_slot())
            self.model.forward([(self.slots[-1], list(range(16)))])

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """See Engine."""
        return self.model.logits(tokens)


class LlamaCpp(Engine):
    """llama.cpp, through llama-cpp-python."""

    def __init__(self, path: str, threads: int) -> None:
        import llama_cpp

        self.make = lambda every, n_ctx: llama_cpp.Llama(
            path,
            n_ctx=n_ctx,
            n_threads=threads,
            n_threads_batch=threads,
            n_batch=512,
            n_ubatch=512,
            logits_all=every,
            verbose=False,
        )
        self.n_ctx = 0
        self.model: Any = None

    def prefill(self, tokens: list[int]) -> None:
        """See Engine."""
        self.model.reset()
        self.model.eval(tokens)

    def timed_prefill(self, tokens: list[int]) -> float:
        """As in Engine, with room for the context made before the clock starts."""
        if self.n_ctx < len(tokens) + 256:
            self.n_ctx = len(tokens) + 256
            self.model = self.make(False, self.n_ctx)
        return super().timed_prefill(tokens)

    def step(self, token: int) -> None:
        """See Engine."""
        self.model.eval([token])

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """See Engine."""
        model = self.make(True, len(tokens) + 16)
        model.eval(tokens)
        return np.array(model.scores[: len(tokens)], np.float32)


class Transformers(Engine):
    """transformers with torch on the CPU, in bfloat16."""

    def __init__(self, path: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        self.cache: Any = None

    def prefill(self, tokens: list[int]) -> None:
        """See Engine."""
        with self.torch.inference_mode():
            out = self.model(self.torch.tensor([tokens]), use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values

    def step(self, token: int) -> None:
        """See Engine."""
        with self.torch.inference_mode():
            ids = self.torch.tensor([[token]])
            out = self.model(ids, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values


ENGINES: dict[str, Callable[[str, int], Engine]] = {
    "apr": Apr, "llama.cpp": LlamaCpp, "transformers": Transformers,
}  # fmt: skip


def _serve(name: str, path: str, threads: int, pipe: Connection) -> None:
    try:
        engine = ENGINES[name](path, threads)
    except Exception as error:
        pipe.send(error if isinstance(error, ImportError) else RuntimeError(str(error)))
        return
    pipe.send(None)
    while (asked := pipe.recv()) is not None:
        pipe.send(getattr(engine, asked[0])(*asked[1:]))


class Process:
    """An engine in its own process; call its methods by name."""

    def __init__(self, name: str, path: str, threads: int = 2) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, path, threads, theirs))
        self._process.start()
        problem = self._pipe.recv()
        if problem is not None:
            raise problem

    def ask(self, method: str, *args: Any) -> Any:
        """Call a method there and wait for what it returns."""
        self._pipe.send((method, *args))
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


def random_tokens(count: int, vocab: int = 49_152) -> list[int]:
    """The same ids for every engine, by default such as SmolLM2 has, too."""
    ids: list[int] = np.random.default_rng(SEED).integers(0, vocab, count).tolist()
    return ids
