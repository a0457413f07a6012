"""One engine in a process of its own: asked and answering in lines of JSON.

    python worker.py ENGINE FILE THREADS CLOCK

ENGINE is apr, llama.cpp or ik_llama.cpp, CLOCK wall or cpu. It needs the engine's package and
numpy, nothing of this repository, so that a peer may run in a venv of its own. The first line that
comes back is {"result": {"version": ..., "features": ...}}; then {"ask": METHOD, ...} is answered
by {"result": ...} or {"error": ...}. It ends with its input.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

CHUNK = 512  # tokens a forward reads at most
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
now = CLOCKS["wall"]
REPACK = "IK_REPACK"  # set: ik_llama.cpp interleaves rows when it loads
Rows = Sequence[tuple[int, int, int]]  # (sequence, position, token)


class Engine:
    """What every engine can do. Tokens are ids."""

    version: str
    vocab: int
    features = ""

    def start(self, sequences: int, n_ctx: int) -> None:
        """Forget everything; then there are that many sequences, for `n_ctx` tokens each."""
        raise NotImplementedError

    def prepared(self, rows: Rows) -> Any:
        """Rows as `forward` takes them: at most CHUNK, each sequence's in order."""
        raise NotImplementedError

    def forward(self, rows: Any) -> None:
        """Advance the sequences; the logits of each one's last token are made."""
        raise NotImplementedError

    def last_logits(self) -> list[float]:
        """Of the last token of the last `forward`."""
        raise NotImplementedError

    def tokens(self, count: int) -> list[int]:
        """The same random ids for every engine of a model."""
        ids: list[int] = np.random.default_rng(5).integers(0, self.vocab, count).tolist()
        return ids

    def _read(self, sequences: int, count: int) -> float:
        """Seconds that each of the sequences takes to read `count` tokens, all together."""
        ids = self.tokens(count)
        rows = [(s, i, token) for s in range(sequences) for i, token in enumerate(ids)]
        chunks = [self.prepared(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)]
        started = now()
        for chunk in chunks:
            self.forward(chunk)
        return now() - started

    def prefill(self, count: int) -> float:
        """Seconds to read `count` tokens, into a sequence that was empty."""
        self.start(1, count + 1)
        return self._read(1, count)

    def decode(self, sequences: int, prompt: int, most: int, seconds: float) -> float:
        """Mean seconds of a step of all sequences: `most` steps, or fewer in that many seconds."""
        self.start(sequences, prompt + most)
        self._read(sequences, prompt)
        ids = self.tokens(most)
        started = now()
        for done, token in enumerate(ids, 1):
            self.forward(self.prepared([(s, prompt + done - 1, token) for s in range(sequences)]))
            spent = now() - started
            if spent > seconds and done >= 8:
                break
        return spent / done

    def logits(self, count: int) -> list[float]:
        """Of the last of `count` tokens: every eighth, which is enough to compare engines by."""
        self.start(1, count + 1)
        self._read(1, count)
        return self.last_logits()[::8]


class Apr(Engine):
    """This project."""

    def __init__(self, path: str, threads: int) -> None:
        from apr_core import load

        self.version = version("apr-core")
        self._model = load(path, threads=threads)
        self.vocab = self._model.config.vocab_size
        self._slots: list[int] = []

    def start(self, sequences: int, n_ctx: int) -> None:
        """See Engine."""
        for slot in self._slots:
            self._model.free_slot(slot)
        self._slots = [self._model.new_slot() for _ in range(sequences)]

    def prepared(self, rows: Rows) -> Any:
        """See Engine."""
        parts: dict[int, list[int]] = {}
        for sequence, _, token in rows:
            parts.setdefault(self._slots[sequence], []).append(token)
        return list(parts.items())

    def forward(self, rows: Any) -> None:
        """See Engine."""
        self._last = self._model.forward_last(rows)
        self._last.wait()

    def last_logits(self) -> list[float]:
        """See Engine."""
        logits: list[float] = self._last.download()[-1].tolist()
        return logits


class Ggml(Engine):
    """llama.cpp and its forks, by their C interface: what both call by the same names."""

    api: Any

    def __init__(self, path: str, threads: int) -> None:
        c = self.api
        c.llama_backend_init()
        params = c.llama_model_default_params()
        self.tune_model(params)
        self._model = c.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise RuntimeError("it cannot load this file")
        self.vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self._model))
        self._threads = threads
        self._contexts: dict[int, tuple[int, Any]] = {}  # sequences -> n_ctx, context

    def tune_model(self, params: Any) -> None:
        """Set what only this engine's models have."""

    def tune(self, params: Any) -> None:
        """Set what only this engine's contexts have."""

    def clear(self, context: Any) -> None:
        """Forget all sequences."""
        raise NotImplementedError

    def start(self, sequences: int, n_ctx: int) -> None:
        """See Engine. A context is kept for each number of sequences, as long as it is enough."""
        known, context = self._contexts.get(sequences, (0, None))
        if known < n_ctx:
            if context:
                self.api.llama_free(context)
            context = self._new_context(sequences, n_ctx)
            self._contexts[sequences] = n_ctx, context
        self._context = context
        self.clear(context)

    def _new_context(self, sequences: int, n_ctx: int) -> Any:
        params = self.api.llama_context_default_params()
        params.n_ctx = sequences * -(-n_ctx // 256) * 256
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = CHUNK
        params.n_threads = params.n_threads_batch = self._threads
        self.tune(params)
        context = self.api.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError(f"it makes no context for {sequences} sequences")
        return context

    def prepared(self, rows: Rows) -> Any:
        """See Engine."""
        n, number = len(rows), ctypes.c_int32
        last = {sequence: i for i, (sequence, _, _) in enumerate(rows)}
        sequences, positions, tokens = zip(*rows, strict=True)
        return self.api.llama_batch(  # which keeps the arrays that it points to
            n_tokens=n,
            token=(number * n)(*tokens),
            pos=(number * n)(*positions),
            n_seq_id=(number * n)(*[1] * n),
            seq_id=(ctypes.POINTER(number) * n)(*[(number * 1)(s) for s in sequences]),
            logits=(ctypes.c_int8 * n)(*[last[s] == i for i, s in enumerate(sequences)]),
        )

    def forward(self, rows: Any) -> None:
        """See Engine."""
        code = self.api.llama_decode(self._context, rows)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        self._last = self.api.llama_get_logits_ith(self._context, -1)  # waits for them

    def last_logits(self) -> list[float]:
        """See Engine."""
        return list(self._last[: self.vocab])


class LlamaCpp(Ggml):
    """llama.cpp, by llama-cpp-python."""

    def __init__(self, path: str, threads: int) -> None:
        import llama_cpp

        self.api, self.version = llama_cpp, version("llama-cpp-python")
        info = llama_cpp.llama_print_system_info().decode()
        names = [part.split(" = ")[0].split(":")[-1].strip() for part in info.split("|")]
        self.features = " ".join(filter(None, names))
        super().__init__(path, threads)

    def clear(self, context: Any) -> None:
        """See Ggml."""
        self.api.llama_memory_clear(self.api.llama_get_memory(context), True)


class IkLlamaCpp(Ggml):
    """ik_llama.cpp, by ik-llama-cpp-python."""

    features = "AVX2"  # what its wheels are built for

    def __init__(self, path: str, threads: int) -> None:
        from ik_llama_cpp import _ctypes_api

        self.api, self.version = _ctypes_api, version("ik-llama-cpp-python")
        self._repacks = REPACK in os.environ
        if self._repacks:
            self.features += ", repacked"
        super().__init__(path, threads)

    def tune_model(self, params: Any) -> None:
        """See Ggml."""
        params.repack_tensors = self._repacks

    def tune(self, params: Any) -> None:
        """As its package makes them where there is no AVX-VNNI."""
        params.flash_attn = False

    def clear(self, context: Any) -> None:
        """See Ggml."""
        self.api.llama_kv_cache_clear(context)


ENGINES: dict[str, Callable[[str, int], Engine]] = {
    "apr": Apr, "llama.cpp": LlamaCpp, "ik_llama.cpp": IkLlamaCpp,
}  # fmt: skip


def main(name: str, path: str, threads: int, clock: str) -> None:
    """Serve one engine to the end of the input."""
    global now
    now = CLOCKS[clock]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**line: Any) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    try:
        engine = ENGINES[name](path, threads)
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}")
        return
    answer(result={"version": engine.version, "features": engine.features})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer(result=getattr(engine, asked.pop("ask"))(**asked))
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
