"""The rules of the layout, as functions from a repository to what breaks them.

`tests/repository/test_architecture.py` applies them to this one, and to planted violations.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

# parts of the core, from the bottom; each imports what is below it, also inside functions
LAYERS = (
    ("apr_core", "errors", "messages"),
    ("declarations", "family", "text"),
    ("hookspecs", "settings", "format", "ops"),
    ("discovery", "generate"),
    ("registry",),
    ("model", "exporting", "importing"),
    ("validation",),
    ("cli",),
    ("plugin", "runtime"),  # what plugins see: nothing of the core imports them
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
# families, formats, devices, protocols and hubs: what knows them is a plugin
FORBIDDEN = re.compile(
    r"qwen|gated_delta_net|\bq[4568]_?[k0]\b|\bnf4\b|numba|triton|\bcuda\b|\bcpu\b|llama|mistral"
    r"|gemma|openai|anthropic|fastapi|granian|hugging_?\s?face|hf://|demo://",
    re.I,
)
KITS = ("apr_devkit", "kits")  # what tests and cases of plugins import


def tree_of(path: Path) -> ast.Module:
    """A file's syntax tree, without what only type checkers read."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    return tree


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports anywhere; a name of a package counts as a module of it."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path: Path, root: Path) -> str:
    """A file's dotted name."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def graph(package: Path) -> dict[str, set[str]]:
    """The modules of a package, and which of them each imports."""
    names = {module_of(p, package.parent): p for p in package.rglob("*.py")}
    modules: dict[str, set[str]] = {}
    for name, path in names.items():
        wanted = {m if m in names else m.rpartition(".")[0] for m in imports(path)}
        modules[name] = (wanted & set(names)) - {name}
    return modules


def upward(repository: Path) -> list[str]:
    """Imports of the core that do not go down, and parts that no layer has."""
    wrong = []
    for module, wanted in graph(repository / "apr_core").items():
        own = _part(module)
        if own not in LEVEL:
            wrong.append(f"{module} is in no layer")
            continue
        for other in sorted(wanted):
            if _part(other) != own and LEVEL.get(_part(other), -1) >= LEVEL[own]:
                wrong.append(f"{module} imports {other}")
    return wrong


def _part(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def circles(repository: Path) -> list[str]:
    """Modules of a package that import each other, directly or not."""
    wrong = []
    for package in (repository / "apr_core", *repository.glob("plugins/*/src/*")):
        edges = {m: w for m, w in graph(package).items() if package.is_dir()}
        while ends := {m for m, wanted in edges.items() if not wanted & set(edges)}:
            edges = {m: wanted - ends for m, wanted in edges.items() if m not in ends}
        while starts := set(edges) - {other for wanted in edges.values() for other in wanted}:
            edges = {m: wanted for m, wanted in edges.items() if m not in starts}
        wrong += [f"{m} imports {', '.join(sorted(w & set(edges)))}" for m, w in edges.items()]
    return wrong


def knowledge(repository: Path) -> list[str]:
    """Lines of the core that name what only plugins may know; comments count."""
    wrong = []
    for path in sorted((repository / "apr_core").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".safetensors":
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                if words := FORBIDDEN.findall(line):
                    where = f"{path.relative_to(repository)}:{number}"
                    wrong.append(f"{where} says {', '.join(words)}")
    return wrong


def between_plugins(repository: Path) -> list[str]:
    """Imports of a plugin by the core, or by another one. Cases and tests may import the kits."""
    plugins = {
        p.name for p in (repository / "plugins").iterdir() if (p / "pyproject.toml").exists()
    }
    owners = [("apr_core", repository / "apr_core")]
    owners += [(name, repository / "plugins" / name / "src") for name in sorted(plugins)]
    wrong = []
    for owner, folder in owners:
        for path in folder.rglob("*.py"):
            allowed = {owner, *(KITS[:1] if path.name == "cases.py" else ())}
            others = {m.split(".")[0] for m in imports(path)} & plugins
            wrong += [
                f"{path.relative_to(repository)} imports {o}" for o in sorted(others - allowed)
            ]
    return wrong


PUBLIC = ("apr_core", "apr_core.plugin", "apr_core.runtime")


def private(repository: Path) -> list[str]:
    """Imports of plugins from what the core does not make public."""
    wrong = []
    for path in sorted(repository.glob("plugins/*/src/**/*.py")) + sorted(
        repository.glob("examples/plugins/*/src/**/*.py")
    ):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            else:
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            wrong += [
                f"{path.relative_to(repository)} imports {module}"
                for module in modules
                if module.partition(".")[0] == "apr_core" and module not in PUBLIC
            ]
    return wrong


RULES = (upward, circles, knowledge, between_plugins, private)
