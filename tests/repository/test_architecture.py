"""The seams, checked on the source: who may import whom, and what the core may not know."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.architecture import RULES, between_plugins, circles, knowledge, private, upward

ROOT = Path(__file__).parents[2]
ON_TORCH = {  # all that imports torch, by file or folder
    "plugins/apr_backend_cuda/": "its arrays",
    "plugins/apr_demo/train/": "how the bundled model was trained; no part of the package",
    "examples/plugins/apr_backend_torch/": "a backend as third parties write them",
    "examples/plugins/apr_kernel_demo/": "kernels for that backend",
    "examples/plugins/apr_decoder_unet/tests/": "the oracle of a decoder",
    "plugins/apr_devkit/src/apr_devkit/kits/rig.py": "the oracle, where installed",
    "tests/hf_models.py": "random checkpoints of the oracle",
    "tests/model/test_parity.py": "the oracle itself",
    "tests/model/test_determinism.py": "runs on those checkpoints",
    "tests/serve/test_real_model.py": "the oracle of a real model",
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


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_layout_is_as_it_is_drawn(rule):
    assert rule(ROOT) == []


@pytest.mark.parametrize(
    ("rule", "files"),
    [
        (upward, {"apr_core/ops/x.py": "def f():\n    from apr_core.model import y\n",
                  "apr_core/model/y.py": ""}),
        (upward, {"apr_core/kitchen.py": ""}),
        (circles, {"apr_core/model/x.py": "from apr_core.model.y import f\n",
                   "apr_core/model/y.py": "def f():\n    from apr_core.model import x\n"}),
        (circles, {"plugins/apr_a/src/apr_a/x.py": "import apr_a.y\n",
                   "plugins/apr_a/src/apr_a/y.py": "import apr_a.z\n",
                   "plugins/apr_a/src/apr_a/z.py": "from apr_a import x\n"}),
        (knowledge, {"apr_core/model/x.py": "# as Llama does\n"}),
        (knowledge, {"apr_core/family/x.yaml": "devices: [cuda]\n"}),
        (knowledge, {"apr_core/importing/x.py": 'HINT = "write hf://ORG/NAME"\n'}),
        (between_plugins, {"apr_core/model/x.py": "def f():\n    import apr_a\n"}),
        (between_plugins, {"plugins/apr_b/src/apr_b/x.py": "from apr_a.y import z\n"}),
        (between_plugins, {"plugins/apr_a/src/apr_a/x.py": "import apr_devkit.kits\n"}),
        (private, {"plugins/apr_a/src/apr_a/x.py": "from apr_core.model.state import State\n"}),
        (private, {"examples/plugins/apr_e/src/apr_e/x.py": "import apr_core.errors\n"}),
        (private, {"plugins/apr_devkit/src/apr_devkit/x.py": "import apr_core.errors\n"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_a_planted_violation_is_found(tmp_path, rule, files):
    (tmp_path / "apr_core").mkdir()
    for plugin in ("apr_a", "apr_b", "apr_devkit"):
        (tmp_path / "plugins" / plugin).mkdir(parents=True)
        (tmp_path / "plugins" / plugin / "pyproject.toml").write_text("")
    assert rule(tmp_path) == []
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert rule(tmp_path) != []


def test_the_index_of_what_is_published_is_data():
    files = {p.name for p in (ROOT / "apr_index").iterdir() if p.name != "__pycache__"}
    assert files == {"__init__.py", "index.json"}
    assert len(ast.parse((ROOT / "apr_index" / "__init__.py").read_text("utf-8")).body) == 1


def asked_for(path):
    """Top packages of everything a file imports, also by name: importorskip("torch")."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(BY_NAME):
            named = node.args[:1]
            yield from (a.value.split(".")[0] for a in named if isinstance(a, ast.Constant))


@cache
def asked_by_file():
    """{path within the repository: the packages that the file imports}."""
    sources = [p for p in ROOT.rglob("*.py") if not p.relative_to(ROOT).parts[0].startswith(".")]
    return {p.relative_to(ROOT).as_posix(): set(asked_for(p)) for p in sources}


def importers(package):
    """Files of the repository, as paths within it, that import a package."""
    return {path for path, packages in asked_by_file().items() if package in packages}


def test_only_what_is_listed_imports_torch_and_the_list_is_no_longer_than_it_need_be():
    modules = importers("torch")
    assert not {name for name in modules if not name.startswith(tuple(ON_TORCH))}
    files = {name for name in ON_TORCH if not name.endswith("/")}
    assert files <= modules


def test_only_the_plugin_and_what_measures_it_import_triton():
    modules = importers("triton")
    assert modules and not {name for name in modules if not name.startswith(ON_TRITON)}


def test_only_sources_of_kernels_and_codecs_import_a_compiler():
    modules = importers("numba") | importers("llvmlite")
    assert modules and not {name for name in modules if not name.startswith(tuple(ON_NUMBA))}


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
    [
        ("apr_backend_cuda", ("triton.jit",)),
        ("apr_backend_cpu", ("helper", "kernel", "intrinsic")),
        ("apr_quant_q4k", ("serial",)),
    ],
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
