"""apr and llama.cpp with the same weights: of the demo model on held-out text, or of a GGUF file.

How often both put the same token first; how far each is from the float32 model (KL divergence, both
ways); and how far from the same weights computed in float32, which is the engines' own share.
`python -m benchmarks.agreement [FILE.gguf]`; needs llama-cpp-python. The text for a file is this
repository's README, in pieces of 256 tokens; its weights in float32 stand for the float32 model.

llama.cpp gets `out_proj` in float16 in q4_k_m and q4k: its order of value heads cannot be kept in
blocks of 256. So it rounds no activations there, and apr does.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apr_core import Model, load
from benchmarks.demo_quality import log_softmax, prompts
from benchmarks.engines import LlamaCpp
from benchmarks.files import exported, imported

SEED = 1
TEXT, PIECE = Path(__file__).parents[1] / "README.md", 256  # and tokens of a piece


def divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Mean KL(p, q) of log-probabilities [T, vocab]."""
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def exact_weights(file: Path) -> Model:
    """The file's model computed in float32: what its weights alone do to the logits."""
    model = load(file, kv_type="f32")
    for w in model.matrices():
        if w.decode is not None:
            w.data = model.backend.upload_matrix(w.decode(w.data[:, : w.row_bytes], w.cols))
            w.format, w.decode, w.layout = "f32", None, None
    return model


def interval(differences: NDArray[np.float64], draws: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean, over prompts."""
    rng = np.random.default_rng(SEED)
    picked = rng.integers(0, differences.size, (draws, differences.size))
    low, high = np.percentile(differences[picked].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def logits_of(model: Model, texts: list[list[int]]) -> list[NDArray[np.float64]]:
    """Log-probabilities of every text."""
    with model:
        return [log_softmax(model.logits(ids)) for ids in texts]


def peer_logits(gguf: Path, texts: list[list[int]], vocab: int) -> list[NDArray[np.float64]]:
    """llama.cpp's, with the same weights."""
    peer = LlamaCpp(str(gguf), 2).make(True, max(map(len, texts)) + 16)
    logits = []
    for ids in texts:
        peer.reset()
        peer.eval(ids)
        logits.append(log_softmax(np.array(peer.scores[: len(ids)], np.float32)[:, :vocab]))
    return logits


def rows(file: Path, texts: list[list[int]], f32: list[NDArray[np.float64]]) -> None:
    """Print a recipe's lines, one for each precision of keys and values."""
    theirs = peer_logits(exported(file, file.with_suffix(".gguf")), texts, f32[0].shape[1])
    weights = logits_of(exact_weights(file), texts)
    for kv_type in ("f16", "q8"):
        ours = logits_of(load(file, kv_type=kv_type), texts)
        same = np.concatenate(
            [a.argmax(-1) == b.argmax(-1) for a, b in zip(ours, theirs, strict=True)]
        )
        pairs = ((f32, ours), (f32, theirs), (ours, f32), (theirs, f32), (weights, ours),
                 (weights, theirs))  # fmt: skip
        kls = [[divergence(p, q) for p, q in zip(*pair, strict=True)] for pair in pairs]
        cells = [f"{np.mean(kl):.3e}" for kl in kls]
        low, high = interval(np.array(kls[0]) - np.array(kls[1]))
        cells.insert(2, f"{low:+.1e} to {high:+.1e}")
        print(f"| {file.stem}, {kv_type} | {same.mean():.2%} | " + " | ".join(cells) + " |")


def of_file(gguf: str, folder: Path) -> None:
    """Print the lines of a GGUF file, imported as it is and exported again."""
    file = imported(gguf, folder / "file.apr", "source")
    with load(file) as model:
        ids = model.tokenizer.encode(TEXT.read_text("utf-8"))
    texts = [ids[i : i + PIECE] for i in range(0, len(ids) - PIECE, PIECE)]
    rows(file, texts, logits_of(exact_weights(file), texts))


def main() -> None:
    """Print the comparison for a file, or for the recipes llama.cpp has a name for."""
    print(
        "| recipe, keys and values | same first token | KL(f32, apr) | KL(f32, llama.cpp) "
        "| 95 % of their difference | KL(apr, f32) | KL(llama.cpp, f32) | KL(weights, apr) "
        "| KL(weights, llama.cpp) |"
    )
    print("|---" * 9 + "|")
    with tempfile.TemporaryDirectory() as folder:
        if sys.argv[1:]:
            of_file(sys.argv[1], Path(folder))
            return
        full = imported("demo://sums", Path(folder) / "f32.apr", "f32")
        with load(full) as model:
            texts = [[*ids, *model.tokenizer.encode(answer)] for ids, answer in prompts(model)]
        f32 = logits_of(load(full), texts)
        for recipe in ("q4_k_m", "q4k", "q6k", "q8_0"):
            rows(imported("demo://sums", Path(folder) / f"{recipe}.apr", recipe), texts, f32)
        print(f"\n{len(texts)} prompts, {sum(map(len, texts))} tokens")


if __name__ == "__main__":
    main()
