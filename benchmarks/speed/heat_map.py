"""The ratios of all cells as one picture: apr over the better peer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.speed.figures import Figures, Model, Phase

LEFT, TOP, WIDTH, HEIGHT = 150, 58, 88, 24  # pixels: of the labels, and of a cell
SLOWER, EQUAL, FASTER = (178, 58, 46), (247, 247, 244), (46, 110, 166)
MOST = 2.0  # the ratio with the full colour


def colour(ratio: float) -> str:
    """From red at 1 / MOST over nearly white at 1 to blue at MOST, by the ratio's logarithm."""
    strength = max(-1.0, min(1.0, math.log(ratio) / math.log(MOST)))
    end = FASTER if strength > 0 else SLOWER
    parts = (round(a + (b - a) * abs(strength)) for a, b in zip(EQUAL, end, strict=True))
    return "#" + "".join(f"{part:02x}" for part in parts)


def _text(x: float, y: float, text: str, more: str = 'text-anchor="middle"') -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" {more}>{text}</text>'


def svg(
    figures: Figures, models: Sequence[Model], levels: Sequence[str], phases: Sequence[Phase]
) -> str:
    """Models down, phases and levels across."""
    columns = [(phase, level) for phase in phases for level in levels]
    width = max(LEFT + WIDTH * len(columns) + 10, 560)
    height = TOP + HEIGHT * len(models) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        "<title>Speed of apr over the better of llama.cpp and ik_llama.cpp</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, phase in enumerate(phases):
        middle = LEFT + WIDTH * len(levels) * (i + 0.5)
        parts.append(_text(middle, 20, str(phase), 'text-anchor="middle" font-weight="bold"'))
    for i, (_, level) in enumerate(columns):
        parts.append(_text(LEFT + WIDTH * (i + 0.5), 44, level.removeprefix("x86-64-")))
    for row, model in enumerate(models):
        y = TOP + HEIGHT * row
        parts.append(_text(LEFT - 8, y + 16, str(model), 'text-anchor="end"'))
        for i, (phase, level) in enumerate(columns):
            ratio = figures.ratio(model, level, phase)
            fill = colour(ratio) if ratio else "#dddddd"
            strong = ratio and not 0.6 < ratio < 1.7
            ink = 'text-anchor="middle" fill="white"' if strong else 'text-anchor="middle"'
            x = LEFT + WIDTH * i
            parts += [
                f'<rect x="{x}" y="{y}" width="{WIDTH - 2}" height="{HEIGHT - 2}" fill="{fill}"/>',
                _text(x + WIDTH / 2 - 1, y + 16, f"{ratio:.2f}" if ratio else "-", ink),
            ]
    below = "1 = as fast as the better of llama.cpp and ik_llama.cpp; blue is faster, red slower"
    parts += [_text(10, height - 10, below, ""), "</svg>"]
    return "\n".join(parts) + "\n"
