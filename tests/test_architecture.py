"""The seams, checked on the source: who may import whom, and which words core may not know."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "apr_core"
PLUGINS = sorted(p.name for p in (ROOT / "plugins").iterdir() if (p / "pyproject.toml").exists())
FORBIDDEN = re.compile(
    r"qwen|gated_delta_net|\bq[4568]_?[k0]\b|\bnf4\b|numba|triton|\bcuda\b|\bcpu\b|llama|mistral|gemma",
    re.I,
)
LAYERS = {"ops": 0, "binding": 1, "model": 2, "engine": 3, "server": 4, "cli": 5}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def texts():
    """Every file of the core that is text."""
    files = [p for p in sorted(CORE.rglob("*")) if p.is_file() and "__pycache__" not in p.parts]
    return [path for path in files if path.suffix != ".safetensors"]


@pytest.mark.parametrize("path", texts(), ids=lambda p: str(p.relative_to(CORE)))
def test_core_knows_no_family_format_or_device(path):
    """Not even in comments: what is published is listed in apr_index, which is data."""
    assert not FORBIDDEN.findall(path.read_text("utf-8"))
    if path.suffix == ".py":
        assert not [m for m in imports(path) if m.split(".")[0] in PLUGINS]


def test_the_index_of_what_is_published_is_data():
    files = {p.name for p in (ROOT / "apr_index").iterdir() if p.name != "__pycache__"}
    assert files == {"__init__.py", "index.json"}
    assert len(ast.parse((ROOT / "apr_index" / "__init__.py").read_text("utf-8")).body) == 1


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda p: str(p.relative_to(CORE)))
def test_imports_go_one_way(path):
    own = path.relative_to(CORE).with_suffix("").parts[0]
    if own not in LAYERS:
        return
    source = ast.parse(path.read_text("utf-8"))
    hidden = {
        id(inner) for node in ast.walk(source) if isinstance(node, ast.If)
        and "TYPE_CHECKING" in ast.dump(node.test) for inner in ast.walk(node)
    }  # fmt: skip
    for node in source.body:
        if id(node) in hidden or not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        parts = node.module.split(".")
        if parts[0] == "apr_core" and len(parts) > 1 and parts[1] in LAYERS:
            assert LAYERS[parts[1]] <= LAYERS[own], f"{own} imports {node.module}"


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugins_import_core_and_no_other_plugin(plugin):
    others = set(PLUGINS) - {plugin}
    for path in (ROOT / "plugins" / plugin / "src").rglob("*.py"):
        assert not [m for m in imports(path) if m.split(".")[0] in others], path
        assert not [m for m in imports(path) if m.split(".")[0] in ("torch", "transformers")], path


def test_contracts_folder_shows_the_packaged_ones():
    for link in (ROOT / "contracts").rglob("*.yaml"):
        assert link.exists(), link
        assert link.resolve().is_relative_to(ROOT)
    names = {p.name for p in (ROOT / "contracts" / "model-families").iterdir()}
    assert {"qwen2.yaml", "qwen3_5.yaml"} <= names
