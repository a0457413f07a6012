"""The seams, checked on the source: who may import whom, and which words core may not know."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "apr_core"
PLUGINS = sorted(p.name for p in (ROOT / "plugins").iterdir() if (p / "pyproject.toml").exists())
FORBIDDEN = re.compile(
    r"qwen|gated_delta_net|\bq[4568]_?[k0]\b|\bnf4\b|numba|triton|\bcuda\b|\bcpu\b|llama|mistral|gemma",
    re.I,
)
ON_TORCH = {  # all that imports torch, by file or folder
    "plugins/apr_backend_cuda/": "its arrays",
    "plugins/apr_demo/train/": "how the bundled model was trained; no part of the package",
    "examples/plugins/apr_backend_torch/": "a backend as third parties write them",
    "examples/plugins/apr_kernel_demo/": "kernels for that backend",
    "apr_core/testing/oracle.py": "transformers as the oracle of a family's kit, where installed",
    "tests/hf_models.py": "random checkpoints of the oracle",
    "tests/test_parity.py": "the oracle itself",
    "tests/test_determinism.py": "runs on those checkpoints",
    "benchmarks/engines.py": "transformers as a peer",
    "benchmarks/gpu/": "measures the backend, and what the device can do",
}
ON_NUMBA = {  # all that imports a compiler; what `apr run` imports is not among it
    "plugins/apr_backend_cpu/src/apr_backend_cpu/kernels/": "sources of kernels",
    "plugins/apr_backend_cpu/src/apr_backend_cpu/build/": "makes libraries of them",
    "plugins/apr_backend_cpu/tests/": "as the oracle of a library",
    "plugins/apr_quant_q4k/": "codecs, imported at the first encode or decode",
    "benchmarks/quantization_error.py": "its threads",
    "benchmarks/speed/roofline.py": "multiply rates of a level",
}
BY_NAME = ("import_module", "__import__", "importorskip")
ON_TRITON = ("plugins/apr_backend_cuda/", "benchmarks/gpu/")
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
        assert "transformers" not in {m.split(".")[0] for m in imports(path)}, path


def asked_for(path):
    """Top packages of everything a file imports, also by name: importorskip("torch")."""
    yield from (module.split(".")[0] for module in imports(path))
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(BY_NAME):
            named = node.args[:1]
            yield from (a.value.split(".")[0] for a in named if isinstance(a, ast.Constant))


def importers(package):
    """Files of the repository, as paths within it, that import a package."""
    sources = [p for p in ROOT.rglob("*.py") if not p.relative_to(ROOT).parts[0].startswith(".")]
    return {p.relative_to(ROOT).as_posix() for p in sources if package in asked_for(p)}


def test_only_what_is_listed_imports_torch_and_the_list_is_no_longer_than_it_need_be():
    found = importers("torch")
    assert not {name for name in found if not name.startswith(tuple(ON_TORCH))}
    files = {name for name in ON_TORCH if not name.endswith("/")}
    assert files <= found


def test_only_the_plugin_and_what_measures_it_import_triton():
    found = importers("triton")
    assert found and not {name for name in found if not name.startswith(ON_TRITON)}


def test_only_sources_of_kernels_and_codecs_import_a_compiler():
    found = importers("numba") | importers("llvmlite")
    assert found and not {name for name in found if not name.startswith(tuple(ON_NUMBA))}


def test_a_gpu_is_looked_for_without_what_it_takes_to_use_one():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from apr_backend_cuda import hooks, probe\n"
        "hooks.apr_backends(); probe.probe()\n"
        "print(sorted({'torch', 'triton', 'numpy'} & set(sys.modules)))"
    )
    source = ROOT / "plugins" / "apr_backend_cuda" / "src"
    done = subprocess.run([sys.executable, "-c", code, source], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def functions_of(package):
    for path in sorted((ROOT / "plugins" / package / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield path.name, node


@pytest.mark.parametrize(
    ("package", "kernels"),
    [("apr_backend_cuda", ("triton.jit",)), ("apr_backend_cpu", ("helper", "kernel", "intrinsic"))],
)
def test_functions_beside_the_kernels_are_annotated(package, kernels):
    """The linter leaves their files alone, because it cannot tell them from kernels."""
    bare = []
    for file, function in functions_of(package):
        if any(ast.unparse(d).startswith(kernels) for d in function.decorator_list):
            continue
        given = function.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        missing = [
            a.arg for a in arguments if a and not a.annotation and a.arg not in ("self", "cls")
        ]
        if missing or not function.returns:
            bare.append(f"{file}: {function.name}({', '.join(missing)})")
    assert not bare


def test_contracts_folder_shows_the_packaged_ones():
    for link in (ROOT / "contracts").rglob("*.yaml"):
        assert link.exists(), link
        assert link.resolve().is_relative_to(ROOT)
    names = {p.name for p in (ROOT / "contracts" / "model-families").iterdir()}
    assert {"qwen2.yaml", "qwen3_5.yaml"} <= names
