"""Engines with one model, measured in turns: what slows the machine down slows all of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apr_eval.measuring import memory_bandwidth
from benchmarks.speed.figures import Figures, Model, Phase, key
from benchmarks.speed.processes import EngineFailed, Player, Running, asked_alone, busy_share

PROMPT = 32  # tokens that each sequence has read before its steps
STEPS, SECONDS = 192, 1.0  # of a turn of decode: whichever is less
COMPARED = 48  # tokens
SAMPLE, PAUSE = 0.3, 2.0  # seconds: to see whether others are quiet, and until the next look
ALIKE = 0.98  # correlation of logits below which a peer does not compute the same


@dataclass(frozen=True)
class Quiet:
    """When a turn counts as undisturbed: others take at most `share` of the processors.

    For such a moment a turn waits, and it is repeated without, for `patience` seconds in all.
    """

    share: float = 1.0
    patience: float = 0.0

    def wait(self, until: float) -> None:
        """Return once others are quiet, or at a time of time.monotonic()."""
        while self.share < 1 and time.monotonic() < until:
            if busy_share(SAMPLE) <= self.share:
                return
            time.sleep(PAUSE)


class Turns:
    """The players of one model. `together`: their processes live side by side."""

    def __init__(
        self,
        model: Model,
        players: Mapping[Player, Path],
        figures: Figures,
        together: bool,
        quiet: Quiet,
    ) -> None:
        self._model, self._players, self._figures = model, players, figures
        self._together, self._quiet = together, quiet
        self._running: dict[Player, Running] = {}
        self._warm: set[tuple[Player, Phase]] = set()
        self._failed: set[tuple[Player, Phase]] = set()
        self._logits: dict[Player, list[float]] = {}

    def play(self, phases: Sequence[Phase], rounds: int) -> None:
        """Measure everything; each round another player begins."""
        order = list(self._players)
        for number in range(rounds):
            self._quiet.wait(time.monotonic() + self._quiet.patience)
            bandwidth = memory_bandwidth(self._figures.threads)
            self._figures.bandwidth.setdefault(str(self._model), []).append(bandwidth)
            turns = [(p, phase) for phase in phases for p in order]
            if not self._together:
                turns = [(p, phase) for p in order for phase in phases]
            for i, (player, phase) in enumerate(turns):
                self._turn(player, phase, f"round {number + 1}")
                if not self._together and (i + 1 == len(turns) or turns[i + 1][0] is not player):
                    self._close(player)
            order = order[1:] + order[:1]
        for player in list(self._running):
            self._close(player)
        self._compare()

    def _turn(self, player: Player, phase: Phase, progress: str) -> None:
        if (player, phase) in self._failed:
            return
        try:
            running = self._opened(player)
            if (player, phase) not in self._warm:
                _ask(running, phase, short=True)
                self._warm.add((player, phase))
            speed, others = self._undisturbed(running, phase)
        except EngineFailed as error:
            self._failed.add((player, phase))
            for level in player.levels:
                name = key(self._model, player.engine, level, phase)
                self._figures.failures[name] = str(error)
            self._close(player)
            return
        for level in player.levels:
            name = key(self._model, player.engine, level, phase)
            self._figures.add(name, speed, others)
            self._figures.failures.pop(name, None)
        message = f"{self._model}, {progress}, {phase}: {player.name} {speed:.1f} tok/s"
        print(f"{message}, others {others:.0%}", file=sys.stderr, flush=True)

    def _undisturbed(self, running: Running, phase: Phase) -> tuple[float, float]:
        """Speed, and the share of others: of the first quiet attempt, or else the quietest."""
        tried: list[tuple[float, float]] = []
        until = time.monotonic() + self._quiet.patience
        while not tried or (tried[-1][1] > self._quiet.share and time.monotonic() < until):
            self._quiet.wait(until)
            tried.append(_ask(running, phase))
        return min(tried, key=lambda attempt: attempt[1])

    def _opened(self, player: Player) -> Running:
        if player not in self._running:
            figures = self._figures
            running = Running(player, self._players[player], figures.threads, figures.clock)
            self._running[player] = running
            self._figures.engines[player.name] = " ".join(running.facts.values()).strip()
            if player not in self._logits:
                self._logits[player] = running.ask("logits", count=COMPARED)
        return self._running[player]

    def _close(self, player: Player) -> None:
        if player in self._running:
            self._running.pop(player).close()
        self._warm = {(p, phase) for p, phase in self._warm if p is not player}

    def _compare(self) -> None:
        """Note engines whose logits are not like those of the first."""
        first = next(iter(self._logits), None)
        for player, logits in self._logits.items():
            assert first is not None
            alike = float(np.corrcoef(logits, self._logits[first])[0, 1])
            same_code = player.engine == first.engine
            if not alike > ALIKE or (same_code and logits != self._logits[first]):
                note = f"logits of {player.name} and {first.name} correlate by {alike:.4f} only"
                self._figures.notes.setdefault(str(self._model), []).append(note)


def _ask(running: Running, phase: Phase, short: bool = False) -> tuple[float, float]:
    """Tokens a second, and the share of others; `short` is enough to have everything ready."""
    if phase.kind == "prefill":
        count = min(phase.count, 256) if short else phase.count
        seconds, others = asked_alone(running, "prefill", count=count)
        return count / seconds, others
    steps, most = (8, 0.0) if short else (STEPS, SECONDS)
    seconds, others = asked_alone(
        running, "decode", sequences=phase.count, prompt=PROMPT, most=steps, seconds=most
    )
    return phase.count / seconds, others
