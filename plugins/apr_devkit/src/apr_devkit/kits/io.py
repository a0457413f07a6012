"""Kits for sources, exporters and commands."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click

from apr_core.plugin import (
    SOURCE,
    AprError,
    AprFile,
    Checkpoint,
    InputOutputError,
    NotFound,
    PluginError,
)
from apr_core.runtime import COMMANDS
from apr_devkit.kits import checks
from apr_devkit.kits.checks import PluginConformance, equal, refusal, shared, skip
from apr_devkit.tiny import tiny_apr

NOWHERE = "apr-kit-no-such-model"
HOMES = ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "LOCALAPPDATA", "TMPDIR", "TEMP", "TMP")
BEFORE = b"what was there before"


@contextmanager
def sandbox() -> Iterator[Path]:
    """Make an empty folder the working directory, the home and the place of temporary files."""
    with tempfile.TemporaryDirectory(prefix="apr-kit-") as name:
        folder = Path(name).resolve()
        homes = dict.fromkeys(HOMES, name) | {"HF_HOME": str(folder / "hub")}
        with patch.dict(os.environ, homes), patch.object(tempfile, "tempdir", name), chdir(folder):
            yield folder


def contents(path: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a directory, or of the one file, by relative name."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def assert_same_files(path: Path, expected: Mapping[str, str], how: str) -> None:
    """Fail if a file, or one in a directory, has other bytes than expected."""
    now = contents(path)
    changed = [n for n in sorted({*now, *expected}) if now.get(n) != expected.get(n)]
    assert not changed, f"{how}, other bytes come out: {', '.join(changed)}"


class SourceConformance(PluginConformance):
    """Checks of one source of checkpoints.

        class TestMine(SourceConformance):
            source = "mine"
            url = "mine://small"           # optional: one that can be fetched

    Without `url`, the attribute `example_url` of the target is fetched, if it has one.
    """

    kind = "source"
    source: str = ""
    url: str = ""

    def example(self) -> str:
        """Return a URL that can be fetched. Skips the check if there is none."""
        url = self.url or getattr(self.load(), "example_url", "")
        return str(url) or skip(
            "no URL to fetch: set `url`, or give the target an attribute `example_url`"
        )

    def test_it_is_called_as_apr_calls_it(self) -> None:
        """The target takes a path; or a URL, and `progress` and `force` by name."""
        signature = inspect.signature(self.load())
        try:
            if not self.declaration.suffixes:
                signature.bind("scheme://name", progress=None, force=False)
            signature.bind("scheme://name")
        except TypeError as error:
            raise AssertionError(f"fetch{signature} cannot be called: {error}") from None

    def test_an_unknown_name_is_not_found(self) -> None:
        """An unknown name is a NotFound that repeats it; what is refused leaves no file behind."""
        for name in ("", "/", f"../{NOWHERE}", f"{NOWHERE}/../../{NOWHERE}"):
            message = self._refusal(name).message.strip()
            assert message, f"the error for {self.name}://{name} says nothing"
        error = self._refusal(NOWHERE)
        if isinstance(error, InputOutputError):
            skip(f"it cannot be reached: {error.message}")
        kind = type(error).__name__
        assert isinstance(error, NotFound), f"raises {kind}: {error.message}; expected NotFound"
        named = NOWHERE in f"{error.message} {error.hint}"
        assert named, f"{error.message!r} does not say which name was not found"

    def _refusal(self, name: str) -> AprError:
        """Return the error for a URL or a path. Fails if a file is left, even in a cache."""
        suffixes = self.declaration.suffixes
        url = f"{name}{suffixes[0]}" if suffixes else f"{self.name}://{name}"
        with sandbox() as folder:
            error = refusal(AprError, f"fetch of {url}", self.load(), url)
            files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())
        assert error, f"{url} gives a path; expected an AprError"
        assert not files, f"a fetch that failed leaves {', '.join(files)}"
        return error

    def test_the_example_is_a_checkpoint(self) -> None:
        """What is fetched is the directory of a checkpoint: config.json and weights."""
        path = self.load()(self.example())
        if self.declaration.suffixes:
            expected = isinstance(path, Checkpoint) and path.tensors
            assert expected, f"open returned a {type(path).__name__}, expected a Checkpoint"
            path = path.directory
        assert isinstance(path, Path), f"fetch returned a {type(path).__name__}, expected a Path"
        config = path / "config.json"
        assert config.is_file(), f"{self.example()} gives {path}, which has no config.json"
        assert isinstance(json.loads(config.read_bytes()), dict), "config.json is no JSON object"
        weights = self.declaration.suffixes or list(path.glob("*.safetensors"))
        assert weights, f"{path} has no *.safetensors file"

    def test_fetching_again_gives_the_same(self) -> None:
        """A second fetch, forced or not, gives the same files, and prints nothing."""
        calls: list[tuple[Any, ...]] = []
        printed, fetch, url = io.StringIO(), self.load(), self.example()
        with redirect_stdout(printed):
            first = contents(fetch(url))
            for force in (False, True):
                path = fetch(url, force=force, progress=lambda *call: calls.append(call))
                assert_same_files(path, first, f"fetched again (force={force})")
        text = printed.getvalue()
        assert not text, f"fetch prints {text[:80]!r}: `apr import --json` prints JSON alone"
        for call in calls:
            assert [type(part) for part in call] == [str, int, int] and call[1] <= call[2], (
                f"progress was called with {call}, expected a name, bytes so far and all bytes"
            )


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, in the middle of an export."""


@dataclass
class Reports:
    """A Progress that records its calls, and raises `error` at its `at`-th report."""

    at: int = 0
    error: BaseException | None = None
    amounts: list[Any] = field(default_factory=list)
    texts: list[Any] = field(default_factory=list)

    def advance(self, amount: float) -> None:
        """Record the amount; raise `error` at the `at`-th call."""
        self.amounts.append(amount)
        if self.error and len(self.amounts) == self.at:
            raise self.error

    def describe(self, text: str) -> None:
        """Record the text."""
        self.texts.append(text)


class Exported:
    """A tiny model of a family, exported."""

    def __init__(self, kit: ExporterConformance, family: str) -> None:
        self.family, self.reports, printed = family, Reports(), io.StringIO()
        self.source = kit.tiny(family, SOURCE)
        self.before = contents(self.source)
        self.out = kit.place(family)
        with redirect_stdout(printed):
            self.summary = kit.export(self.source, self.out, self.reports)
        self.printed = printed.getvalue()


class ExporterConformance(PluginConformance):
    """Checks of one exporter, on a tiny model of the first installed family it can write.

        class TestMine(ExporterConformance):
            exporter = "mine"
            family = "that"                # optional: the family to export

    The model has random weights and the family's `tiny_config()`.
    """

    kind = "exporter"
    exporter: str = ""
    family: str = ""

    @shared
    def exported(self) -> Exported:
        """Return the first export. Skips the check if no installed family can be exported."""
        self.load()  # a broken target is an error, not a refusal
        names = [o.qualified for o in self.registry.declarations("family")]
        refusals = []
        for name in [self.family] if self.family else names:
            try:
                return Exported(self, name)
            except AprError as error:
                refusals.append(f"{name}: {error.message}")
        reason = f"no installed family can be exported: {'; '.join(refusals) or 'there is none'}"
        assert not self.family, reason
        return skip(reason)

    def tiny(self, family: str, recipe: str) -> Path:
        """Return the path of a tiny model."""
        folder = self.folder() / f"{family}-{recipe}".replace(":", "-")
        return tiny_apr(family, folder, recipe, registry=self.registry)

    def place(self, name: str) -> Path:
        """Return a path to write to, in an empty folder."""
        folder = Path(tempfile.mkdtemp(prefix=name.replace(":", "-"), dir=self.folder()))
        return folder / f"model.{self.declaration.name}"

    def export(self, source: Path, out: Path, progress: Any = None) -> Any:
        """Export a file; return what the target returns."""
        with AprFile.open(source) as file:
            return self.load()(file, out, progress=progress)

    def test_the_summary_is_true(self) -> None:
        """The result has path, tensors, bytes, skipped and warnings, as they are on disk."""
        summary, out = self.exported.summary, self.exported.out
        assert isinstance(summary, Mapping), f"export returned {summary!r}, no mapping"
        kinds = {"path": str, "tensors": int, "bytes": int, "skipped": list, "warnings": list}
        for key, kind in kinds.items():
            value = summary.get(key)
            assert type(value) is kind, f"result[{key!r}] is {value!r}, expected a {kind.__name__}"
            for text in summary[key] if kind is list else ():
                assert isinstance(text, str), f"result[{key!r}] holds {text!r}, expected text"
        json.dumps(dict(summary))
        assert out.exists(), f"there is nothing at {out}"
        equal("path of the result", summary["path"], str(out))
        equal("bytes of the result", summary["bytes"], _size(out))
        with AprFile.open(self.exported.source) as file:
            unknown = sorted(set(summary["skipped"]) - set(file.tensors))
        assert not unknown, f"skipped names {unknown[0]!r}, which the file does not have"
        assert summary["tensors"] > 0, "no tensor was written"

    def test_nothing_else_is_written(self) -> None:
        """There is no other file, the input is as it was, and nothing is printed."""
        export = self.exported
        assert list(export.out.parent.iterdir()) == [export.out], _listed(export.out.parent)
        assert contents(export.source) == export.before, "export changed the file it reads"
        text = export.printed
        assert not text, f"export prints {text[:80]!r}: `apr export --json` prints JSON alone"

    def test_the_same_bytes_every_time(self) -> None:
        """A second export, without a progress bar and in another process, gives the same bytes."""
        source, first, out = self.exported.source, contents(self.exported.out), self.place("again")
        self.export(source, out)
        assert_same_files(out, first, "exported again")
        checks.call_fresh(f"{__name__}:export", self.declaration.target, str(source), str(out))
        assert_same_files(out, first, "in another process")

    def test_progress_adds_up_to_the_work(self) -> None:
        """Progress reports bytes: about as many as are read or written."""
        reports = self.exported.reports
        assert reports.amounts, "export never calls progress.advance"
        wrong = [a for a in reports.amounts if not isinstance(a, int | float) or a < 0]
        assert not wrong, f"progress.advance was called with {wrong[0]!r}"
        texts = [t for t in reports.texts if not isinstance(t, str)]
        assert not texts, f"progress.describe was called with {texts[:1]}"
        least, most = sorted((_size(self.exported.source), _size(self.exported.out)))
        total = sum(reports.amounts)
        assert least / 2 <= total <= 2 * most, (
            f"progress adds up to {total} bytes; {least} to {most} are the files"
        )

    def test_a_failed_export_changes_nothing(self) -> None:
        """After an error or Ctrl-C there is no output, or the one that was there before."""
        count, source = len(self.exported.reports.amounts), self.exported.source
        if not count:
            skip("it never reports progress, so it cannot be stopped half way")
        errors = (OSError(28, "No space left"), Interrupted())
        for at, error, before in product(sorted({1, (count + 1) // 2}), errors, (None, BEFORE)):
            where, out = f"{type(error).__name__} at report {at}", self.place("failed")
            if before:
                out.write_bytes(before)
            try:
                self.export(source, out, Reports(at, error))
            except (Exception, Interrupted):
                pass
            else:
                raise AssertionError(f"export goes on after {where}")
            kept = not before or (out.is_file() and out.read_bytes() == before)
            assert kept, f"{where} destroys the file that was there"
            files = _listed(out.parent, *([out] if before else []))
            assert not files, f"after {where} there is {files}"
        self.export(source, out)
        assert_same_files(out, contents(self.exported.out), "where a file was before")

    def test_packed_weights_are_written_or_refused(self) -> None:
        """A quantized file is exported, or refused with a message and without leaving anything."""
        source = self.tiny(self.exported.family, self._recipe())
        out = self.place("packed")
        try:
            self.export(source, out)
        except AprError as error:
            assert error.message.strip(), "the refusal says nothing"
            files = _listed(out.parent)
            assert not files, f"the refusal leaves {files}"
        else:
            assert out.exists(), f"there is nothing at {out}"

    def _recipe(self) -> str:
        """Return a recipe with installed block formats. Skips the check if there is none."""
        for owned in self.registry.declarations("recipe"):
            with suppress(PluginError):
                if [self.registry.make("quantizer", name) for name in owned.declaration.formats]:
                    return owned.qualified
        return skip("no recipe with a block format is installed")


def export(target: str, source: str, out: str) -> None:
    """Call an exporter's "module:function"."""
    with AprFile.open(source) as file:
        checks.attribute(target)(file, Path(out))


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in (path, *path.rglob("*")) if p.is_file())


def _listed(folder: Path, *without: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.iterdir() if p not in without))


NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# slow imports; compilers and device libraries come with one of these
HEAVY = (
    "numpy", "torch", "transformers", "tokenizers", "safetensors", "jax", "tensorflow", "scipy",
    "pandas",
)  # fmt: skip
WRONG_OPTION = "--apr-kit-no-such-option"
USAGE = 2  # exit code
RUN = """
import contextlib, io, json, sys
from importlib import import_module
before = set(sys.modules)
out, err, code = io.StringIO(), io.StringIO(), 0
module, _, attribute = sys.argv[1].partition(":")
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    command = getattr(import_module(module), attribute)
    try:
        command.main(args=sys.argv[3:], prog_name="apr " + sys.argv[2])
    except SystemExit as error:
        code = error.code or 0
print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue(),
                  "modules": sorted(set(sys.modules) - before)}))
"""


class CommandConformance(PluginConformance):
    """Checks of one command.

        class TestMine(CommandConformance):
            command = "mine"

    The command is run in separate processes, with `--help` and with a wrong option.
    """

    kind = "command"
    command: str = ""

    def run(self, option: str) -> dict[str, Any]:
        """Return the outcome of `apr NAME OPTION`: code, out, err, and the modules it imported."""
        d = self.declaration
        outcome: dict[str, Any] = json.loads(checks.run_fresh(RUN, d.target, d.name, option))
        return outcome

    def test_the_target_is_a_command(self) -> None:
        """The target is a click command or group."""
        target, kind = self.load(), type(self.load()).__name__
        is_command = isinstance(target, click.Command)
        assert is_command, f"{self.declaration.target} is a {kind}, expected a click.Command"

    def test_help_is_there_and_light(self) -> None:
        """`--help` prints the summary, and imports no array, device or tokenizer library."""
        ran, summary = self.run("--help"), self.declaration.summary
        equal(f"exit code of --help, which says {ran['err'].strip()[-200:]!r},", ran["code"], 0)
        assert _words(summary) in _words(ran["out"]), (
            f"--help does not say {summary!r}, which `apr --help` shows for this command"
        )
        heavy = ", ".join(name for name in HEAVY if name in ran["modules"])
        assert not heavy, f"--help imports {heavy}: import it inside the command's function"

    def test_a_wrong_option_is_a_usage_error(self) -> None:
        """An option that does not exist ends with 2 and a message that names it."""
        ran = self.run(WRONG_OPTION)
        equal("exit code of a wrong option", ran["code"], USAGE)
        assert WRONG_OPTION in ran["err"], f"the message is {ran['err'].strip()[-200:]!r}"

    def test_the_name_can_be_typed_and_is_not_taken(self) -> None:
        """The name is a lower-case word and not that of a built-in command."""
        name = self.declaration.name
        assert NAME.fullmatch(name), f"{name!r} is no name of a command: use a-z, 0-9 and -"
        taken = name in COMMANDS and not self.declaration.group
        assert not taken, f"`apr {name}` is built in: this command would never run"


def _words(text: str) -> str:
    return " ".join(re.findall(r"[\w'-]+", text.lower()))
