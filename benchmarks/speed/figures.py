"""What was measured, as it is kept in a file of JSON: raw figures, and whatever explains them."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

PEERS = ("llama.cpp", "ik_llama.cpp")
FORMATS = {"q4_k_m": "bytes", "q6k": "bytes", "q8_0": "bytes", "bf16": "floats"}  # of products


class Model(NamedTuple):
    """A size in a format."""

    size: str
    format: str

    def __str__(self) -> str:
        return f"{self.size} {self.format}"


@dataclass(frozen=True)
class Phase:
    """Reading a prompt of `count` tokens, or steps of `count` sequences."""

    kind: str  # prefill or decode
    count: int

    def __str__(self) -> str:
        return f"{self.kind} {self.count}"


@dataclass
class Figures:
    """All that one machine measured. Keys are of words, joined by blanks, as tables show them."""

    machine: str
    threads: int
    clock: str = "wall"  # or cpu: the time that the process was given
    beside: int = 0  # processes that only compute, all the time
    engines: dict[str, str] = field(default_factory=dict)  # engine, level -> version, features
    rates: dict[str, float | None] = field(default_factory=dict)  # level, kind -> multiply-adds / s
    bandwidth: dict[str, list[float]] = field(default_factory=dict)  # model -> bytes / s, a round
    work: dict[str, dict[str, int]] = field(default_factory=dict)  # model -> fields of Work
    notes: dict[str, list[str]] = field(
        default_factory=dict
    )  # model -> what is not as it should be
    failures: dict[str, str] = field(default_factory=dict)  # model, engine, level, phase -> reason
    speeds: dict[str, list[float]] = field(default_factory=dict)  # the same -> tokens / s, a round
    others: dict[str, list[float]] = field(default_factory=dict)  # the same -> processors' share

    @classmethod
    def load(cls, path: Path) -> Figures:
        """What `save` kept."""
        return cls(**json.loads(path.read_text("utf-8")))

    def save(self, path: Path) -> None:
        """Keep everything."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")
        part.replace(path)

    def add(self, key: str, speed: float, others: float) -> None:
        """One turn's."""
        self.speeds.setdefault(key, []).append(speed)
        self.others.setdefault(key, []).append(others)

    def speed(self, model: Model, engine: str, level: str, phase: Phase) -> float | None:
        """Median tokens a second, of all sequences together."""
        values = self.speeds.get(key(model, engine, level, phase))
        return statistics.median(values) if values else None

    def ratio(self, model: Model, level: str, phase: Phase) -> float | None:
        """apr's speed over that of the better peer."""
        ours = self.speed(model, "apr", level, phase)
        theirs = [self.speed(model, peer, level, phase) for peer in PEERS]
        best = max((speed for speed in theirs if speed), default=None)
        return ours / best if ours and best else None

    def share(self, model: Model, level: str, phase: Phase) -> float | None:
        """What apr uses of the machine: of its bandwidth in decode, of its multipliers in prefill.

        The bandwidth is what was read beside this model, the weights are read once a step.
        """
        ours, work = self.speed(model, "apr", level, phase), self.work.get(str(model))
        if not ours or not work:
            return None
        if phase.kind == "decode":
            bandwidth = statistics.median(self.bandwidth[str(model)])
            return work["weight_bytes"] * ours / phase.count / bandwidth
        rate = self.rates.get(f"{level} {FORMATS[model.format]}")
        return work["multiply_adds"] * ours / rate if rate else None


def key(model: Model, engine: str, level: str, phase: Phase) -> str:
    """Of `Figures.speeds`."""
    return f"{model} {engine} {level} {phase}"
