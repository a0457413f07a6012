"""Checks of a backend that chooses tokens itself: draw by draw what the host takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from apr_core.generate.sampling import chosen
from apr_core.ops.binding import Draw
from apr_devkit.kits.checks import skip
from apr_devkit.kits.device import DeviceKit
from apr_devkit.kits.op_checks import no

NEAR = 1e-6  # of a share: exponentials round otherwise on a device
TEMPERATURES = (0.0, 1e-9, 0.4, 1.0, 30.0)
STEPS: tuple[tuple[int, float, float], ...] = (  # top-k, top-p, min-p
    (0, 1.0, 0.0), (0, 1.0, 0.05), (1, 1.0, 0.0), (5, 1.0, 0.0), (40, 0.9, 0.0), (20, 0.7, 0.02),
    (0, 0.0, 0.0), (0, 0.6, 0.0), (0, 0.95, 0.1), (10**6, 1.0, 1.0),
)  # fmt: skip
Rows = NDArray[np.float32]


class ChoiceChecks(DeviceKit):
    """The checks themselves."""

    def choose(self, rows: Rows, draws: Sequence[Draw | None]) -> list[int | None]:
        """What the backend chooses from logits [rows, vocab]. Skips where it has no `choose`."""
        if not self.device.has("choose"):
            skip("it has no choose()")
        found = self.device.choose(self.device.upload(rows), draws)
        kinds = sorted({type(token).__name__ for token in found} - {"int", "NoneType"})
        assert not kinds, f"choose gives {', '.join(kinds)}, expected int or None"
        assert len(found) == len(draws), f"{len(found)} tokens for {len(draws)} draws"
        return found

    def test_chosen_tokens_are_those_of_the_host(self) -> None:
        """Every draw takes the host's token, or is left to it; the likeliest are always taken."""
        for label, rows, valid in _rows():
            draws = _draws(len(rows), valid)
            found = self.choose(rows, draws)
            no([f"{label}: {c}" for c in _complaints(rows, draws, found)])
            greedy = self.choose(rows, [Draw(valid)] * len(rows))
            best = rows[:, :valid].argmax(axis=1).tolist()
            assert greedy == best, f"{label}: {greedy} are not the likeliest tokens, {best}"

    def test_rows_that_are_not_finite_are_left_to_the_host(self) -> None:
        """A NaN, +inf or no finite value gives None, whatever the draw; but not in padding."""
        good = np.random.default_rng(1).standard_normal(70).astype(np.float32)
        bad = np.stack([good] * 3)
        bad[0, 11], bad[1, 48], bad[2] = np.nan, np.inf, -np.inf
        padded = np.stack([good] * 3)
        padded[0, 65], padded[1, 66], padded[2, 64:] = np.nan, np.inf, np.inf
        for temperature, steps in product((0.0, 1.0), STEPS):
            draw = Draw(64, temperature, *steps, share=0.3)
            found = self.choose(bad, [draw] * 3)
            assert found == [None] * 3, f"{draw}: rows that are not finite give {found}"
            found = self.choose(padded, [draw] * 3)
            no(_complaints(padded, [draw] * 3, found))
            served = temperature > 0 or None not in found
            assert served, f"{draw}: padding that is not finite is no reason to give {found}"

    def test_choices_do_not_depend_on_the_batch(self) -> None:
        """A draw takes the same token alone and in any batch; rows without a draw give None."""
        _, rows, valid = next(iter(_rows()))
        draws: list[Draw | None] = [None if i % 5 == 2 else d
                                    for i, d in enumerate(_draws(len(rows), valid))]  # fmt: skip
        together = self.choose(rows, draws)
        alone = [self.choose(rows[i : i + 1], [draw])[0] for i, draw in enumerate(draws)]
        for i, (one, draw) in enumerate(zip(alone, draws, strict=True)):
            assert one == together[i], f"{draw}: {one} alone, {together[i]} in a batch"
            assert draw is not None or one is None, f"a row without a draw gives {one}"


def _rows() -> Iterator[tuple[str, Rows, int]]:
    """What it is, logits [rows, vocab], and how many of the ids are valid."""
    rng = np.random.default_rng(0)
    count = len(STEPS) * len(TEMPERATURES)
    plain = (rng.standard_normal((count, 97)) * 3).astype(np.float32)
    yield "97 scores", plain, 97
    ties = rng.integers(-2, 3, (count, 97)).astype(np.float32)
    yield "equal scores", ties * rng.choice([-0.0, 0.5], ties.shape).astype(np.float32), 97
    padded = plain.copy()
    padded[:, 60:] += 100
    yield "60 scores and padding", padded, 60
    masked = np.where(rng.random(plain.shape) < 0.8, np.float32(-np.inf), plain)
    masked[:, 3] = 0.25
    yield "masked scores", masked, 97
    long = (rng.standard_normal((count, 5003)) * 4).astype(np.float32)
    yield "5003 scores", long, 5001


def _draws(count: int, valid: int) -> list[Draw]:
    """So many draws, of all kinds."""
    rng = np.random.default_rng(2)
    kinds = list(product(TEMPERATURES, STEPS))
    return [Draw(valid, kinds[i][0], *kinds[i][1], share=float(rng.random())) for i in range(count)]


def _complaints(
    rows: Rows, draws: Sequence[Draw], found: Sequence[int | None]
) -> list[str]:  # fmt: skip
    complaints = []
    for row, draw, token in zip(rows, draws, found, strict=True):
        shares = {min(max(draw.share + by, 0.0), 1 - NEAR) for by in (-NEAR, 0.0, NEAR)}
        tokens = {chosen(row, replace(draw, share=share)) for share in shares}
        if token is not None and token not in tokens:
            complaints.append(f"{draw} takes {token}, the host {sorted(tokens)}")
    return complaints
