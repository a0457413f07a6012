"""Which models are measured, and how much of everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apr_core.generate.boundaries import CHUNK, GRID
from apr_core.registry import Registry
from benchmarks.checkpoints import QWEN3_5

FAMILY = "qwen3_5"
TINY = "tiny"
NAMES = (TINY, *QWEN3_5)


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much is measured. Lengths and rows are tokens."""

    batches: tuple[int, ...] = (1, 8, 64, 256)
    contexts: tuple[int, ...] = (1024, 32768)
    prompts: tuple[int, ...] = (512, 4096, 32768)
    chunks: tuple[int, ...] = (CHUNK, 4096)  # of a prompt, a forward
    few_rows: tuple[int, ...] = (1, 8, 64)
    many_rows: tuple[int, ...] = (512, 4096)
    steps: int = 10  # of decode, in each of `rounds`
    rounds: int = 5
    warm_steps: int = 4  # one compiles, one captures
    prefills: int = 3
    agreed_tokens: int = 256  # on the demo model
    agreed_prompts: int = 6
    agreed_short: int = 512  # tokens of them at most
    agreed_long: int = CHUNK + GRID + 5  # tokens of one more prompt
    own_tokens: int = 32  # on the measured shape
    own_prompts: tuple[int, ...] = (1, 63, 130, 300, 700, 1500)
    loads: int = 3
    copied: int = 1 << 30  # bytes
    multiplied: int = 8192  # rows and columns of a square matrix
    emptied: int = 1 << 30  # bytes that are written to empty the cache

    @property
    def decode_steps(self) -> int:
        """Steps of a sequence while one row of the decode table is measured."""
        return self.warm_steps + (self.rounds + 1) * self.steps


INTERPRETED = Amounts(
    batches=(1, 2),
    contexts=(8,),
    prompts=(20,),
    chunks=(16,),
    few_rows=(1, 3),
    many_rows=(16,),
    steps=1,
    rounds=1,
    warm_steps=2,
    prefills=1,
    agreed_tokens=2,
    agreed_prompts=1,
    agreed_short=6,
    agreed_long=0,
    own_tokens=2,
    own_prompts=(1, 5),
    loads=1,
    copied=1 << 24,
    multiplied=256,
    emptied=0,
)


def amounts(shape: str) -> Amounts:
    """What is measured of a shape."""
    return INTERPRETED if shape == TINY else Amounts()


def hf_config(shape: str, registry: Registry) -> dict[str, Any]:
    """config.json of a published size; of `tiny`, the family's own for tests, cut to two layers."""
    if shape != TINY:
        return QWEN3_5[shape].config()
    config: dict[str, Any] = registry.make("family", FAMILY).tiny_config()
    kinds = ["linear_attention", "full_attention"]
    return config | {
        "num_hidden_layers": len(kinds), "layer_types": kinds, "full_attention_interval": 2,
        "mtp_num_hidden_layers": 0, "head_dim": 32, "intermediate_size": 128,
        "rope_parameters": config["rope_parameters"] | {"mrope_section": [2, 1, 1]},
    }  # fmt: skip
