"""Train the demo model on this machine's CPU: `python train.py OUT [--steps N] [--seed N]`.

Seeded. Prints step, loss and held-out accuracy; saves a checkpoint at every evaluation.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from checkpoint import write
from data import NUMBER_ONLY, Turn, dialogues, held_out_sums, render
from tokenizer import train_tokenizer
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

LENGTH = 64  # tokens a row: one chunk of the delta rule
IGNORE = -100


def make_model(tokenizer: Tokenizer) -> Qwen3_5ForCausalLM:
    """Make a model of four layers of 256: three delta nets, one full attention."""
    rope = {
        "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25,
        "mrope_section": [4, 2, 2], "mrope_interleaved": True,
    }  # fmt: skip
    config = Qwen3_5TextConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        num_hidden_layers=4,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        rope_parameters=rope,
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
    )
    return Qwen3_5ForCausalLM(config)


def encode(tokenizer: Tokenizer, pieces: list[tuple[str, bool]]) -> tuple[list[int], list[int]]:
    """Return ids and labels; labels are IGNORE where the text is not to be learned."""
    ids: list[int] = []
    labels: list[int] = []
    for text, learned in pieces:
        new = tokenizer.encode(text, add_special_tokens=False).ids
        ids += new
        labels += new if learned else [IGNORE] * len(new)
    return ids, labels


def batches(tokenizer: Tokenizer, size: int, seed: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield (ids, labels) [size, LENGTH] without end, padded on the right."""
    pad = tokenizer.token_to_id("<|endoftext|>")
    rows: list[tuple[list[int], list[int]]] = []
    for system, turns in dialogues(seed):
        ids, labels = encode(tokenizer, render(system, turns))
        if len(ids) > LENGTH:
            continue
        fill = LENGTH - len(ids)
        rows.append((ids + [pad] * fill, labels + [IGNORE] * fill))
        if len(rows) == size:
            yield torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])
            rows = []


def prompt_ids(tokenizer: Tokenizer, user: str) -> list[int]:
    """Return the ids of a one-turn prompt, thinking off, as the chat template renders it."""
    head = render(None, [Turn(user, "")])[0][0]
    return tokenizer.encode(head, add_special_tokens=False).ids


@torch.inference_mode()
def accuracy(model: Qwen3_5ForCausalLM, tokenizer: Tokenizer, turns: list[Turn]) -> float:
    """Return the share of answers right to the last token (teacher forced: equal to greedy)."""
    pad, right = tokenizer.token_to_id("<|endoftext|>"), 0
    for part in _parts(turns):
        rows = []
        for turn in part:
            prompt = prompt_ids(tokenizer, turn.user)
            answer = tokenizer.encode(turn.assistant + "<|im_end|>", add_special_tokens=False).ids
            rows.append((prompt, answer))
        longest = max(len(p) + len(a) for p, a in rows)
        ids = torch.full((len(rows), longest), pad)
        for i, (p, a) in enumerate(rows):
            ids[i, : len(p) + len(a)] = torch.tensor(p + a)
        best = model(ids).logits.argmax(-1)
        for i, (p, a) in enumerate(rows):
            right += best[i, len(p) - 1 : len(p) + len(a) - 1].tolist() == a
    return right / len(turns)


def _parts(turns: list[Turn]) -> Iterator[list[Turn]]:
    for i in range(0, len(turns), 256):
        yield turns[i : i + 256]


@torch.inference_mode()
def confidence(model: Qwen3_5ForCausalLM, tokenizer: Tokenizer) -> float:
    """Return the probability of `4` as the answer to the manual's question."""
    ids = prompt_ids(tokenizer, NUMBER_ONLY[0].format(a=2, b=2))
    probabilities = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
    return float(probabilities[tokenizer.token_to_id("4")])


def four_bits(weight: torch.Tensor) -> torch.Tensor:
    """Round to nearest in groups of 32 with a minimum and a scale, as a 4-bit format would."""
    groups = weight.reshape(-1, 32)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = ((high - low) / 15).clamp_min(1e-12)
    return (((groups - low) / scale).round() * scale + low).reshape(weight.shape)


def rough(model: Qwen3_5ForCausalLM) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Replace weights by four-bit ones; return the originals."""
    saved = []
    for name, p in model.named_parameters():
        if p.ndim == 2 and "in_proj_a" not in name and "in_proj_b" not in name:
            saved.append((p, p.detach().clone()))
            p.data = four_bits(p.data)
    return saved


def restore(saved: list[tuple[torch.nn.Parameter, torch.Tensor]]) -> None:
    """Undo `rough`, keeping any gradients."""
    for p, value in saved:
        p.data = value


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate: linear warm-up over 100 steps, then a cosine to a fiftieth."""
    if step < 100:
        return peak * (step + 1) / 100
    done = (step - 100) / max(1, steps - 100)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def report(model: Qwen3_5ForCausalLM, tokenizer: Tokenizer) -> str:
    """Return a line: held-out accuracy now and with four-bit weights, and the manual's question."""
    model.eval()
    turns = held_out_sums()
    exact, sure = accuracy(model, tokenizer, turns), confidence(model, tokenizer)
    saved = rough(model)
    four, four_sure = accuracy(model, tokenizer, turns), confidence(model, tokenizer)
    restore(saved)
    model.train()
    return f"held out {exact:.1%}, 4-bit {four:.1%}; P(4) {sure:.4f}, 4-bit {four_sure:.4f}"


def train(options: argparse.Namespace) -> None:
    """Train, saving at every evaluation. The last third trains through four-bit weights."""
    torch.manual_seed(options.seed)
    tokenizer = train_tokenizer(options.seed)
    model = make_model(tokenizer).train()
    template = (Path(__file__).parent / "chat_template.jinja").read_text()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    start = time.time()
    for step, (ids, labels) in enumerate(batches(tokenizer, options.batch, options.seed)):
        if step == options.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.lr)
        saved = rough(model) if step >= options.steps * 2 // 3 else []
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids).logits.float()
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        restore(saved)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"{time.time() - start:6.0f} s  step {step}  loss {loss.item():.4f}", flush=True)
        if step % 250 == 249 or step + 1 == options.steps:
            print(f"  {report(model, tokenizer)}", flush=True)
            write(model, tokenizer, template, options.out)
    sums = [{"prompt": t.user, "answer": t.assistant} for t in held_out_sums()]
    (options.out.parent / "heldout.json").write_text(json.dumps(sums) + "\n")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
