"""The same shape in transformers and torch: bfloat16, random weights made on the device.

transformers uses its own torch code for the delta rule unless flash-linear-attention and
causal-conv1d are installed; which of them are is printed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.machine import GIB
from benchmarks.gpu.shapes import hf_config
from benchmarks.gpu.table import Column

FASTER = ("fla", "causal_conv1d", "flash_attn")  # packages that it uses where they are
BATCHES, CONTEXTS, PROMPTS = 3, 1, 2  # so many of the amounts, from the first
COLUMNS = (
    Column("what", "transformers, bfloat16"), Column("batch", "batch"),
    Column("length", "context or prompt"), Column("tok_s", "tok/s", ".1f"),
    Column("ms", "ms a step or prompt", ".2f"), Column("peak_gib", "peak, GiB", ".1f"),
    Column("note", ""),
)  # fmt: skip


def run(bench: Bench) -> None:
    """Print the table, or one line where transformers is not installed."""
    if find_spec("transformers") is None:
        bench.report.note("transformers is not installed: it is left out.")
        return
    bench.drop_model()
    try:
        model = _made(bench)
    except Exception as error:
        bench.report.note(f"transformers is left out: {type(error).__name__}: {error}")
        return
    table = bench.report.table("transformers", COLUMNS)
    a = bench.amounts
    for prompt in a.prompts[:PROMPTS]:
        bench.attempt(
            table,
            {"what": "prefill", "batch": 1, "length": prompt},
            partial(_prefill, bench, model, prompt),
        )
    for context in a.contexts[:CONTEXTS]:
        for batch in a.batches[:BATCHES]:
            bench.attempt(
                table,
                {"what": "decode", "batch": batch, "length": context},
                partial(_decode, bench, model, batch, context),
            )


def _made(bench: Bench) -> Any:
    """The model, on the device from the start."""
    import transformers
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    hf = hf_config(bench.shape, bench.registry)
    text = dict(hf.get("text_config", hf))
    text["tie_word_embeddings"] = hf["tie_word_embeddings"]
    text.pop("architectures", None)
    config = Qwen3_5TextConfig(**text)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(bench.machine.device):
            model: Any = Qwen3_5ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.eval()
    weights = sum(p.nbytes for p in model.parameters())
    there = [name for name in FASTER if find_spec(name)]
    bench.report.note(
        f"transformers {transformers.__version__}, {weights / GIB:.2f} GiB of weights, with "
        f"{', '.join(there) or 'none of ' + ', '.join(FASTER)}. Medians after one that warms up."
    )
    return model


def _ids(bench: Bench, model: Any, batch: int, length: int) -> torch.Tensor:
    size = (batch, length)
    return torch.randint(0, model.config.vocab_size, size, device=bench.machine.device)


def _timed(bench: Bench, run: Callable[[], Any], count: int) -> float:
    """Median seconds of a run, after one that warms up."""
    bench.machine.seconds(run)
    return statistics.median(bench.machine.seconds(run) for _ in range(count))


def _prefill(bench: Bench, model: Any, prompt: int) -> dict[str, Any]:
    ids = _ids(bench, model, 1, prompt)
    with torch.inference_mode():
        took = _timed(
            bench, lambda: model(ids, use_cache=True, logits_to_keep=1), bench.amounts.prefills
        )
    return {"tok_s": prompt / took, "ms": 1e3 * took}


def _decode(bench: Bench, model: Any, batch: int, context: int) -> dict[str, Any]:
    """Steps that feed back the likeliest token, which stays on the device."""
    a = bench.amounts
    rounds = []
    with torch.inference_mode():
        prefix = _ids(bench, model, batch, context - a.decode_steps)
        out = model(prefix, use_cache=True, logits_to_keep=1)
        cache, token = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
        for number in range(1 + a.rounds):  # the first warms up
            bench.machine.synchronize()
            started = time.perf_counter()
            for _ in range(a.steps):
                out = model(token, past_key_values=cache, use_cache=True)
                cache, token = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
            bench.machine.synchronize()
            rounds += [(time.perf_counter() - started) / a.steps] * (number > 0)
    took = statistics.median(rounds)
    return {"tok_s": batch / took, "ms": 1e3 * took}
