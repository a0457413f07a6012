"""How large the code is: lines, files and functions of each package, and what `apr run` loads.

    python -m benchmarks.size

Lines are those of Python files, with docstrings, comments and blank lines. Modules are those of the
core that a process has imported after `apr run` answered a prompt.
"""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = """
import sys
from apr_core.cli import run
code = run(sys.argv[1:])
names = [name for name in sys.modules if name.partition(".")[0] == "apr_core"]
print(len(names), file=sys.stderr)
sys.exit(code)
"""


def packages() -> Iterator[tuple[str, Path]]:
    """(name, folder) of the core and of every plugin."""
    yield "apr_core", ROOT / "apr_core"
    for folder in sorted(ROOT.glob("plugins/*/src/*")):
        if folder.is_dir() and (folder / "__init__.py").exists():
            yield folder.name, folder


def functions(path: Path) -> Iterator[int]:
    """The lines of every function of a file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def spread(sizes: Sequence[int]) -> str:
    """Median, 90th percentile and maximum."""
    if not sizes:
        return "-"
    ranked = sorted(sizes)
    return f"{statistics.median(ranked):.0f} / {ranked[int(0.9 * len(ranked))]} / {ranked[-1]}"


def row(name: str, folder: Path) -> tuple[str, ...]:
    """A package's row of the table."""
    files = sorted(folder.rglob("*.py"))
    lines = [len(path.read_text("utf-8").splitlines()) for path in files]
    sizes = [size for path in files for size in functions(path)]
    most = max(len(list(path.glob("*.py"))) for path in {path.parent for path in files})
    return name, str(len(files)), str(sum(lines)), spread(lines), spread(sizes), str(most)


def dependencies() -> list[str]:
    """What the core's wheel requires."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [re.split(r"[<>=~! ]", line)[0] for line in project["dependencies"]]


def modules_of_a_run() -> int:
    """Modules of the core that `apr run` imports for an answer of the bundled model."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sums.apr"
        command = ["import", "demo://sums", "--quantize", "q4k", "-o", str(file)]
        subprocess.run(
            [sys.executable, "-m", "apr_core.cli", *command], check=True, capture_output=True
        )
        done = subprocess.run(
            [sys.executable, "-c", RUN, "run", str(file), "1+1=", "--max-tokens", "4"],
            check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    return int(done.stderr.splitlines()[-1])


def main() -> None:
    """Print it all."""
    head = ("package", "files", "lines", "a file", "a function", "files a folder")
    print("Of files and functions: median / 90th percentile / maximum, in lines.\n")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, folder in packages():
        print(f"| {' | '.join(row(name, folder))} |")
    print(f"\nThe core's wheel needs {', '.join(dependencies())}.")
    print(f"`apr run` loads {modules_of_a_run()} modules of the core.")


if __name__ == "__main__":
    main()
