"""The plot of docs/benchmarks.md, from its own tables: `python benchmarks/plot.py`."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
ROW = re.compile(r"\| (prefill of \d+|decode) \| .* \| ([\d.]+) \| ([\d.]+) \|$")
LEFT, BAR, GAP, SCALE = 190, 22, 8, 200  # pixels; SCALE is a ratio of 1


def ratios(text: str) -> list[tuple[str, float]]:
    """(label, apr / llama.cpp) of the tables headed by a size."""
    pairs, size = [], ""
    for line in text.splitlines():
        heading = re.match(r"\| (\d\.?\d*b) \| apr", line)
        size = heading[1] if heading else size
        row = ROW.match(line)
        if row and size:
            pairs.append((f"{size}, {row[1]}", float(row[2])))
    return pairs


def svg(rows: list[tuple[str, float]]) -> str:
    """Horizontal bars, and a line where both are equally fast."""
    height = len(rows) * (BAR + GAP) + 40
    width = LEFT + int(SCALE * (max(r for _, r in rows) + 0.3))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13" role="img">',
        "<title>Speed of apr over llama.cpp, same weights, same run</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, (label, ratio) in enumerate(rows):
        y = 10 + i * (BAR + GAP)
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 16}" text-anchor="end">{label}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{SCALE * ratio:.0f}" height="{BAR}" fill="#3b6ea5"/>',
            f'<text x="{LEFT + SCALE * ratio + 6:.0f}" y="{y + 16}">{ratio:.2f}</text>',
        ]
    one = LEFT + SCALE
    parts += [
        f'<line x1="{one}" x2="{one}" y1="4" y2="{height - 26}" stroke="black" '
        'stroke-dasharray="4"/>',
        f'<text x="{one}" y="{height - 10}" text-anchor="middle">llama.cpp = 1</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    rows = ratios((DOCS / "benchmarks.md").read_text("utf-8"))
    (DOCS / "vs_llama_cpp.svg").write_text(svg(rows), "utf-8")
    print(f"{len(rows)} bars")
