"""Every example in docs/ and README.md is run; links lead somewhere; reference pages are current.

What is run, in the order of a page:

- ```python: in one namespace per page, in the folder where the page's shell is;
- ```sh: commands that have to succeed; ```console: `$ ` commands with the output that they print.
  Shown lines have to be there, in order and all of them; numbers and spaces may differ, a line
  `...` stands for any lines, `...` at a line's end for the rest of it, and `/home/you` for $HOME.
  No line shown below a command: its output does not matter. Folder and variables last;
- a block below `<!-- file: PATH -->` is written to that file, whatever its language;
- `<!-- exit: N -->` above a block: its last command ends with N;
- `<!-- not run: why -->` above a block: it cannot be run here. NOT_RUN lists all of these.

Other fences (```text, ...) are shown only. The tutorial begins in the repository with a venv of its
own; how-tos begin in an empty folder, in a venv with the core and the plugins shipped here. That
venv has the third-party packages of this interpreter, so nothing is fetched; with APR_DOCS_FETCH=1
pip fetches all of them, as it does for a reader.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from apr_core import hookspecs
from apr_core.declarations import HOOKS, Quantizer
from apr_core.discovery.collecting import Refused, checked
from apr_core.settings import cache_dir
from downstream.fresh import FreshVenv
from tests.docs_pages import RUN, Reader, blocks, first_missing

pytestmark = [pytest.mark.needs_plugins, pytest.mark.takes_minutes]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FOLLOWED = [p for p in PAGES if p.parent.name in ("tutorial", "how-to") or p.name == "README.md"]
SHIPPED = (
    "", "plugins/apr_backend_cpu", "plugins/apr_demo", "plugins/apr_gemma3", "plugins/apr_gguf",
    "plugins/apr_llama", "plugins/apr_quant_q4k", "plugins/apr_qwen2", "plugins/apr_qwen3",
    "plugins/apr_qwen3_5", "plugins/apr_qwen3_5_moe", "plugins/apr_devkit", "plugins/apr_eval",
    "plugins/apr_hub",
    "plugins/apr_serve",
)  # fmt: skip
UNSEEN = ("_gemma3", "_gguf", "_hub", "_llama", "_moe", "_qwen2", "_qwen3")  # by the tutorial
FETCH = os.environ.get("APR_DOCS_FETCH") == "1"
NOT_RUN = {
    "first-quantizer.md": ["publishes a package"],
    "pull.md": ["downloads a model; tests/hub/test_hub_pull.py pulls from a hub of its own"],
    "README.md": ["makes a venv of its own; CI runs them", "downloads a model"],
    "serve.md": ["it is installed already"],
    "benchmarks.md": ["it compiles llama.cpp twice"],
    "plugin-api.md": ["rewrites a file of the repository"],
    "manage-plugins.md": ["upgrades Python"],
    "use-a-gpu.md": ["needs an NVIDIA GPU"] * 4,
    "test-a-plugin.md": [
        "builds a second environment; tests/repository/test_downstream.py does this"
    ],
}


def name_of(page):
    return str(page.relative_to(ROOT))


class Desk:
    """A venv, a home, and what a shell needs to work with both, far from this process's own."""

    def __init__(self, root):
        self.home = root / "home"  # the venv is where the tutorial makes one
        self.fresh = FreshVenv(self.home / "first-quantizer", link=not FETCH, name=".venv")
        for module in () if FETCH else ("pytest", "ruff"):  # linked packages have no scripts
            script = self.fresh.venv / "bin" / module
            script.write_text(f'#!/bin/sh\nexec {self.fresh.python} -m {module} "$@"\n')
            script.chmod(0o755)
        editable = [part for path in SHIPPED for part in ("-e", ROOT / path)]
        self.pip("install", *editable)

    def env(self, in_venv=True):
        base = f"{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin"
        own = {
            "HOME": str(self.home), "LANG": "C.UTF-8", "PATH": base,
            "NUMBA_CACHE_DIR": str(cache_dir() / "numba"), "COLUMNS": "100",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        if FETCH:
            own |= {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
        else:
            own |= {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}  # pip reads: no isolation
        venv = self.fresh.venv
        inside = {"VIRTUAL_ENV": str(venv), "PATH": f"{venv}/bin:{base}"}
        return own | inside if in_venv else own

    def pip(self, *arguments):
        subprocess.run(
            [self.fresh.python, "-m", "pip", *arguments],
            env=self.env(), check=True, capture_output=True,
        )  # fmt: skip

    def installed(self):
        """Distributions that pip may uninstall again."""
        site = next((self.fresh.venv / "lib").glob("python*/site-packages"))
        return {p.name.partition("-")[0] for p in site.glob("*.dist-info") if not p.is_symlink()}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return Desk(tmp_path_factory.mktemp("docs"))


def follow(page, reader):
    for block in blocks(page):
        if block.is_run:
            reader.follow(block)


def test_the_tutorial_works_by_copy_and_paste(desk, tmp_path):
    reader = Reader(desk.env(in_venv=False), tmp_path)
    reader.go(ROOT)
    unseen = [p for p in SHIPPED if p.endswith(UNSEEN)]  # with those that the page has installed
    names = [path.rpartition("/")[2].replace("_", "-") for path in unseen]
    desk.pip("uninstall", "-y", *names)
    try:
        follow(DOCS / "tutorial" / "first-quantizer.md", reader)
    finally:
        desk.pip("install", "--no-deps", *(part for path in unseen for part in ("-e", ROOT / path)))


@pytest.mark.parametrize("page", [p for p in FOLLOWED if p.parent.name != "tutorial"], ids=name_of)
def test_a_page_does_what_it_says(desk, tmp_path, page):
    before = desk.installed()
    try:
        follow(page, Reader(desk.env(), tmp_path))
    finally:
        more = desk.installed() - before
        if more:
            desk.pip("uninstall", "-y", *more)


@pytest.mark.parametrize("page", [p for p in PAGES if p not in FOLLOWED], ids=name_of)
def test_python_of_reference_and_explanation_runs(tmp_path, page):
    reader = Reader({"HOME": str(tmp_path)}, tmp_path)
    for block in blocks(page):
        if block.is_run and (block.language == "python" or block.mark == "file"):
            reader.follow(block)


def test_hooks_are_documented_with_declarations_that_apr_takes():
    names = {}
    for block in blocks(DOCS / "reference" / "hooks.md"):
        exec(block.text, names)
    for hook in HOOKS:
        assert [checked(d, hook) for d in names[hook]()], hook
    assert {n for n in vars(hookspecs) if n.startswith("apr_")} == set(HOOKS)


@pytest.mark.parametrize("api", [0, 2])
def test_a_refusal_reads_as_it_is_shown(api):
    with pytest.raises(Refused) as refused:
        declared = Quantizer("pebble", "m:C", api=api, block=32, bytes_per_block=18)
        checked(declared, "apr_quantizers")
    assert f"\n{refused.value}\n" in text(DOCS / "explanation" / "plugin-api.md")


def test_what_is_not_run_is_listed_with_its_reason():
    reasons = {
        page.name: [b.value for b in blocks(page) if b.mark == "not run"]
        for page in PAGES
        if any(b.mark == "not run" for b in blocks(page))
    }
    assert reasons == NOT_RUN


@pytest.mark.parametrize("page", FOLLOWED, ids=name_of)
def test_nothing_in_a_followed_page_escapes(page):
    indented = re.findall(r"(?m)^\n {4}(?!\d|-)\S.*", re.sub(r"(?ms)^```.*?^```$", "", text(page)))
    assert not indented, "indented blocks are not run: use fences"
    languages = {b.language for b in blocks(page) if b.mark != "file"}
    assert languages <= {*RUN, "text", "toml", "yaml"}, languages


def text(page):
    return page.read_text("utf-8")


def test_reference_pages_are_what_the_code_says():
    done = subprocess.run(
        [sys.executable, DOCS / "generate.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_reference_page_that_differs_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(DOCS))
    import generate

    page = tmp_path / "errors.md"
    page.write_text("old")
    monkeypatch.setattr(generate, "pages", lambda: {page: "new"})
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    assert generate.main(["--check"]) == 1 and "errors.md" in capsys.readouterr().out
    assert page.read_text() == "old"
    assert generate.main([]) == 0 and page.read_text() == "new"
    assert generate.main(["--check"]) == 0


def test_the_index_names_every_page():
    linked = {target for _, target in links(DOCS / "README.md")}
    missing = {p for p in DOCS.rglob("*.md") if p != DOCS / "README.md"} - linked
    assert not missing


LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


def links(page):
    """(the link, the path it leads to) of all links within this repository."""
    for target in LINK.findall(re.sub(r"(?ms)^```.*?^```$", "", text(page))):
        if "://" not in target:
            path = target.partition("#")[0]
            yield target, (page.parent / path).resolve() if path else page


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_links_lead_somewhere(page):
    for target, path in links(page):
        assert path.exists(), f"{target} leads to nothing"
        anchor = target.partition("#")[2]
        if anchor:
            assert anchor in anchors(path), f"{target}: {path.name} has no such heading"


def anchors(page):
    headings = re.findall(r"(?m)^#+ (.*)$", text(page))
    return {re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize(
    ("shown", "output", "missing"),
    [
        (["a 1.5 b"], "a 27 b\n", None),
        (["a", "c"], "a\nb\nc\n", "c"),
        (["a", "...", "c"], "a\nb\nb\nc\n", None),
        (["a", "...", "d"], "a\nb\nc\n", "d"),
        (["a"], "a\nb\n", "(nothing after 'a')"),
        (["cpu: 2 threads, ..."], "cpu: 8 threads, avx2\n", None),
        (["x  y"], "x      y\n", None),
        ([], "anything\n", None),
        (["ok"], "FAILED\n", "ok"),
    ],
)
def test_output_is_compared_loosely_but_compared(shown, output, missing):
    assert first_missing(shown, output) == missing
