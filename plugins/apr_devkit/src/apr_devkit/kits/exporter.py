"""The kit of exporters: a tiny file is written whole, the same way each time, or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_core.errors import AprError, PluginError
from apr_core.format import AprFile
from apr_core.importing.choosing import SOURCE
from apr_devkit.kits.checks import skip
from apr_devkit.kits.fresh import run_fresh
from apr_devkit.kits.plugin import PluginConformance
from apr_devkit.kits.source import contents
from apr_devkit.kits.tiny import tiny_apr

EXPORT = """
import sys
from importlib import import_module
from pathlib import Path
from apr_core.format import AprFile
module, _, attribute = sys.argv[1].partition(":")
with AprFile.open(sys.argv[2]) as file:
    getattr(import_module(module), attribute)(file, Path(sys.argv[3]))
"""
BEFORE = b"what was there before"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, in the middle of an export."""


class Reports:
    """A Progress that remembers what it is told, and raises `error` at its `at`-th report."""

    def __init__(self, at: int = 0, error: BaseException | None = None) -> None:
        self.amounts: list[Any] = []
        self.texts: list[Any] = []
        self.at, self.error = at, error

    def advance(self, amount: float) -> None:
        """So much more is done."""
        self.amounts.append(amount)
        if self.error and len(self.amounts) == self.at:
            raise self.error

    def describe(self, text: str) -> None:
        """What is being done now."""
        self.texts.append(text)


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was made and exported."""

    family: str
    source: Path
    out: Path
    summary: Any
    reports: Reports
    printed: str


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

    def exported(self) -> Exported:
        """The first export. Skips the check if no installed family can be exported."""
        made: Exported | str = self.kept("exported", self._first)
        if isinstance(made, str):
            assert not self.family, made
            skip(made)
        return made

    def _first(self) -> Exported | str:
        self.load()  # a target that is broken is no refusal
        names = [o.qualified for o in self.registry.declarations("family")]
        refusals = []
        for name in [self.family] if self.family else names:
            try:
                return self._export_tiny(name)
            except AprError as error:
                refusals.append(f"{name}: {error.message}")
        return f"no installed family can be exported: {'; '.join(refusals) or 'there is none'}"

    def _export_tiny(self, family: str) -> Exported:
        folder = self.folder() / family.replace(":", "-")
        source = tiny_apr(family, folder / "source", SOURCE, registry=self.registry)
        reports, printed = Reports(), io.StringIO()
        out = self.place(f"{folder.name}/first")
        with redirect_stdout(printed):
            summary = self.export(source, out, reports)
        return Exported(family, source, out, summary, reports, printed.getvalue())

    def place(self, name: str) -> Path:
        """A path to write to, in an empty folder."""
        folder = self.folder() / name
        folder.mkdir(parents=True)
        return folder / f"model.{self.declaration.name}"

    def export(self, source: Path, out: Path, progress: Any = None) -> Any:
        """What the target returns."""
        with AprFile.open(source) as file:
            return self.load()(file, out, progress=progress)

    def test_the_summary_says_what_was_written(self) -> None:
        """The result has path, tensors, bytes, left_out and warnings, and JSON can hold it."""
        made = self.exported()
        assert isinstance(made.summary, Mapping), f"export returned {made.summary!r}, no mapping"
        kinds = {"path": str, "tensors": int, "bytes": int, "left_out": list, "warnings": list}
        for key, kind in kinds.items():
            found = made.summary.get(key)
            assert type(found) is kind, f"result[{key!r}] is {found!r}, expected a {kind.__name__}"
        for key in ("left_out", "warnings"):
            wrong = [part for part in made.summary[key] if not isinstance(part, str)]
            assert not wrong, f"result[{key!r}] holds {wrong[0]!r}, expected text"
        json.dumps(dict(made.summary))

    def test_the_summary_is_true(self) -> None:
        """The path is the one asked for, bytes are those on disk, names are the file's."""
        made = self.exported()
        summary = made.summary
        assert Path(summary["path"]) == made.out, f"path {summary['path']}, expected {made.out}"
        assert made.out.exists(), f"there is nothing at {made.out}"
        assert summary["bytes"] == _size(made.out), (
            f"bytes is {summary['bytes']}, on disk are {_size(made.out)}"
        )
        with AprFile.open(made.source) as file:
            unknown = sorted(set(summary["left_out"]) - set(file.tensors))
        assert not unknown, f"left_out names {unknown[0]!r}, which the file does not have"
        assert summary["tensors"] > 0, "no tensor was written"

    def test_nothing_else_is_written(self) -> None:
        """Beside the output there is no other file, and the input is as it was."""
        made = self.exported()
        before = made.source.read_bytes()
        out = self.place("alone")
        self.export(made.source, out)
        assert list(out.parent.iterdir()) == [out], _listed(out.parent)
        assert made.source.read_bytes() == before, "export changed the file it reads"

    def test_exporting_prints_nothing(self) -> None:
        """Nothing is printed: `apr export --json` prints JSON alone."""
        printed = self.exported().printed
        assert not printed, f"export prints {printed[:80]!r}"

    def test_the_same_bytes_every_time(self) -> None:
        """A second export, without a progress bar and in another process, gives the same bytes."""
        made = self.exported()
        first, out = contents(made.out), self.place("again")
        arguments = (self.declaration.target, str(made.source), str(out))
        self.export(made.source, out)
        assert contents(out) == first, _changed(first, contents(out), "exported again")
        run_fresh(EXPORT, *arguments)
        assert contents(out) == first, _changed(first, contents(out), "in another process")

    def test_progress_adds_up_to_the_work(self) -> None:
        """Progress reports bytes: about as many as are read or written."""
        made = self.exported()
        amounts = made.reports.amounts
        assert amounts, "export never calls progress.advance"
        wrong = [a for a in amounts if not isinstance(a, int | float) or a < 0]
        assert not wrong, f"progress.advance was called with {wrong[0]!r}"
        texts = [t for t in made.reports.texts if not isinstance(t, str)]
        assert not texts, f"progress.describe was called with {texts[:1]}"
        sizes = sorted((_size(made.source), _size(made.out)))
        assert sizes[0] / 2 <= sum(amounts) <= 2 * sizes[1], (
            f"progress adds up to {sum(amounts)} bytes; {sizes[0]} to {sizes[1]} are the files"
        )

    def test_a_failed_export_leaves_nothing(self) -> None:
        """An error or Ctrl-C half way leaves no output and no file beside it."""
        for number, (at, error) in enumerate(self._failures()):
            out = self.place(f"failed-{number}")
            self._fail(out, at, error)
            left = _listed(out.parent)
            assert not left, f"after {type(error).__name__} at report {at} there is {left}"

    def test_a_failed_export_keeps_what_was_there(self) -> None:
        """An existing file is replaced by a whole new one or not at all."""
        made = self.exported()
        for number, (at, error) in enumerate(self._failures()):
            out = self.place(f"kept-{number}")
            out.write_bytes(BEFORE)
            self._fail(out, at, error)
            there = out.is_file() and out.read_bytes() == BEFORE
            assert there, f"{type(error).__name__} at report {at} destroys the file that was there"
            left = [p.name for p in out.parent.iterdir() if p != out]
            assert not left, f"after {type(error).__name__} there is {', '.join(left)}"
            self.export(made.source, out)
            assert contents(out) == contents(made.out), "an existing file is not replaced"

    def _failures(self) -> Iterator[tuple[int, BaseException]]:
        """(number of the report, what it raises): at the first and in the middle."""
        count = len(self.exported().reports.amounts)
        if not count:
            skip("it never reports progress, so it cannot be stopped half way")
        for at in sorted({1, (count + 1) // 2}):
            yield at, OSError(28, "No space left on device")
            yield at, Interrupted()

    def _fail(self, out: Path, at: int, error: BaseException) -> None:
        try:
            self.export(self.exported().source, out, Reports(at, error))
        except (Exception, Interrupted):
            return
        raise AssertionError(f"export goes on after {type(error).__name__} at report {at}")

    def test_packed_weights_are_written_or_refused(self) -> None:
        """A quantized file is exported, or refused with a message and without leaving anything."""
        made = self.exported()
        recipe = self._recipe()
        folder = self.folder() / "packed-source"
        source = tiny_apr(made.family, folder, recipe, registry=self.registry)
        out = self.place("packed")
        try:
            self.export(source, out)
        except AprError as error:
            assert error.message.strip(), "the refusal says nothing"
            assert not _listed(out.parent), f"the refusal leaves {_listed(out.parent)}"
            return
        assert out.exists(), f"there is nothing at {out}"

    def _recipe(self) -> str:
        """A recipe with formats of blocks, all installed. Skips the check if there is none."""
        for owned in self.registry.declarations("recipe"):
            try:
                for name in owned.declaration.formats:
                    self.registry.make("quantizer", name)
            except PluginError:
                continue
            if owned.declaration.formats:
                return owned.qualified
        return skip("no recipe with a block format is installed")


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a directory."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


def _listed(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.iterdir()))


def _changed(first: Mapping[str, str], second: Mapping[str, str], where: str) -> str:
    names = [n for n in sorted({*first, *second}) if first.get(n) != second.get(n)]
    return f"{where}, other bytes come out: {', '.join(names)}"
