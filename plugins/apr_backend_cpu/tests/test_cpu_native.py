"""Where machine code is from: a library that was built, or the same sources compiled here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from llvmlite import binding

import apr_backend_cpu
from apr_backend_cpu import backend, native
from apr_backend_cpu.backend import Cpu
from apr_backend_cpu.build import emit
from apr_backend_cpu.build.__main__ import main as build
from apr_backend_cpu.build.link import LinkError, linker
from apr_backend_cpu.kernels import source
from apr_backend_cpu.levels import GENERIC
from apr_backend_cpu.native import chosen
from apr_core import settings
from apr_core.cli.import_ import run_import
from apr_devkit.kits.checks import run_fresh

DIGESTS = Path(__file__).parent / "level_digests.py"
SAID = ["notice: compiling kernels for this processor 0/1",
        "notice: compiling kernels for this processor 1/1"]  # fmt: skip


def links():
    """Whether libraries can be built here."""
    try:
        return chosen() is not GENERIC and bool(linker())
    except LinkError:
        return False


needs_linker = pytest.mark.skipif(not links(), reason="no library can be built here")


class Copy:
    """The package in another place, without libraries, and with a cache of its own."""

    def __init__(self, root):
        self.package, self.cache = root / "apr_backend_cpu", root / "cache"
        leave = shutil.ignore_patterns("libraries", "__pycache__")
        shutil.copytree(Path(apr_backend_cpu.__file__).parent, self.package, ignore=leave)
        path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.env = os.environ | {"PYTHONPATH": path, "APR_CACHE": str(self.cache)}

    def python(self, *arguments, level=""):
        done = subprocess.run(
            [sys.executable, *arguments], env=self.env | {"APR_CPU_LEVEL": level},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def digests(self, level=""):
        """(notices, origin, what of a compiler was imported, digests)."""
        lines = self.python(DIGESTS, level=level)
        notices = [line for line in lines if line.startswith("notice: ")]
        origin, *digests, imported = lines[len(notices) :]
        return notices, origin.partition(": ")[2], imported.split()[1:], digests

    def build(self):
        return self.python("-m", "apr_backend_cpu.build")

    def libraries(self):
        return sorted(path.name for path in self.package.glob("libraries/*.so"))

    def kept(self):
        return [(p, p.stat().st_mtime_ns) for p in self.cache.glob("cpu/*/*")]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return Copy(tmp_path_factory.mktemp("copy"))


@pytest.fixture(scope="module")
def built():
    """This processor's library beside the sources, as `make setup` builds it."""
    if not native.library_path(chosen()).exists() and not links():
        pytest.skip("no library can be built here")
    assert build([]) == 0


@pytest.mark.takes_minutes
def test_sources_without_a_library_are_compiled_once_to_the_same_bits(copy):
    notices, origin, imported, compiled = copy.digests("generic")
    assert (notices, origin, imported) == (SAID, "compiled here", ["llvmlite", "numba"])
    kept = copy.kept()
    assert [path.name for path, _ in kept] == ["kernels.o"]
    assert copy.digests("generic") == ([], "compiled here", ["llvmlite"], compiled)
    assert copy.kept() == kept, "the second start reads what the first one kept"


@pytest.mark.takes_minutes
@needs_linker
def test_a_library_gives_the_bits_of_its_sources_and_needs_no_compiler(copy, built):
    compiled = copy.digests("generic")[3]
    library = native.library_path(chosen())
    folder = copy.package / "libraries"
    folder.mkdir()
    shutil.copy(library, folder)
    (folder / f"{chosen().name}-0123456789abcdef.so").write_bytes(b"of other sources")
    assert copy.build() == [], "what is there is not built again"
    assert copy.libraries() == [library.name], "the old one is gone"
    assert copy.digests() == ([], library.name, [], compiled)


@pytest.fixture
def compiled(monkeypatch):
    """What a compiler was asked for; it gives an object with one function, quickly."""
    asked = []

    def object_code(level):
        asked.append(level)
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        machine = binding.Target.from_default_triple().create_target_machine(reloc="pic")
        text = f'target triple = "{binding.get_process_triple()}"\n'
        return machine.emit_object(
            binding.parse_assembly(
                f"{text}define i64 @twice(i64 %x) {{\n %y = add i64 %x, %x\n ret i64 %y\n}}"
            )
        )

    monkeypatch.setattr(emit, "object_code", object_code)
    settings._say_once.cache_clear()
    return asked


@pytest.mark.parametrize("tries", [1, 3])
def test_kept_code_is_read_and_names_are_looked_up_in_it(compiled, monkeypatch, tmp_path, tries):
    monkeypatch.setenv("APR_CACHE", str(tmp_path))
    for _ in range(tries):
        code = native._compiled(chosen())
        assert code.function("twice", 1)(21) == 42
        with pytest.raises(AttributeError, match="no function 'thrice'"):
            code.address("thrice")
    assert compiled == [chosen()]


@pytest.mark.parametrize("elsewhere", [True, False])
def test_code_is_kept_elsewhere_or_not_where_the_cache_cannot_be_used(
    compiled, monkeypatch, tmp_path, capsys, elsewhere
):
    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    own = tmp_path / "temporary" / f"apr-{os.getuid()}"
    if not elsewhere:
        own.write_text("")
    for _ in range(2):
        assert native._compiled(chosen()).function("twice", 1)(21) == 42
    kept = f"is kept in {own / 'cpu'}" if elsewhere else "is not kept"
    (notice,) = capsys.readouterr().err.splitlines()
    assert "compiled code" in notice and kept in notice and "Set APR_CACHE" in notice
    assert len(compiled) == (1 if elsewhere else 2)
    assert bool(list(own.glob("cpu/*/kernels.o"))) == elsewhere


def test_every_declared_kernel_can_be_called():
    functions = [f.name for f in source.VECTOR_FUNCTIONS.values() if not f.inline]
    addresses = [native.address(name) for name in (*functions, *source.KERNELS)]
    assert len(set(addresses)) == len(addresses) > 100


def test_a_name_that_no_kernel_has_is_an_error_that_says_so():
    with pytest.raises(AttributeError, match="no_such_kernel"):
        native.address("no_such_kernel")


def test_a_description_says_which_kernels_and_makes_none(monkeypatch, tmp_path):
    description = f"cpu: 2 threads, kernels for {chosen().name}"
    monkeypatch.setattr(backend, "library_path", lambda level: tmp_path)
    assert Cpu(2).describe() == description
    monkeypatch.setattr(backend, "library_path", lambda level: tmp_path / "none.so")
    assert Cpu(2).describe() == f"{description}, compiled at first use"


RUN = """
import sys
import tempfile
from apr_core.cli import main
sys.argv = ["apr", "run", sys.argv[1], "hello", "--max-tokens", "4"]
try:
    main()
except SystemExit as end:
    assert not end.code
print()
print("imported:", *sorted({"numba", "llvmlite"} & set(sys.modules)))
"""


@pytest.mark.needs_plugins
@pytest.mark.parametrize("family", ["qwen2", "qwen3_5"])
@pytest.mark.parametrize("recipe", ["q4_k_m", "q6k", "q8_0", "bf16"])
def test_running_a_model_imports_no_compiler(built, tmp_path, family, recipe):
    checkpoints = pytest.importorskip("tests.tiny_checkpoints")
    for name in (f"apr_{family}", "apr_quant_q4k"):
        pytest.importorskip(name, reason="makes the model")
    options = {"layout": "flat", "mtp": False, "vision": False} if family == "qwen2" else {}
    source = checkpoints.write(tmp_path / "checkpoint", family=family, **options)
    run_import(str(source), tmp_path / "model.apr", recipe)
    assert run_fresh(RUN, str(tmp_path / "model.apr")) == "imported:"
