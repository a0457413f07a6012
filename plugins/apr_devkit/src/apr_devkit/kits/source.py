"""The kit of sources: what is there is fetched, and what is not is said and leaves no trace."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from apr_core.errors import AprError, InputOutputError, NotFound
from apr_devkit.kits.checks import skip
from apr_devkit.kits.plugin import PluginConformance

NOWHERE = "apr-kit-no-such-model"
HOMES = ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "LOCALAPPDATA", "TMPDIR", "TEMP", "TMP")


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

    def fetch(self, url: str, **options: Any) -> Any:
        """What the target makes of a URL."""
        return self.load()(url, **options)

    def example(self) -> str:
        """A URL that can be fetched. Skips the check if nobody names one."""
        found = self.url or getattr(self.load(), "example_url", "")
        if not found:
            skip("no URL to fetch: set `url`, or give the target an attribute `example_url`")
        return str(found)

    def fetched(self) -> Path:
        """The directory of the example, fetched once."""
        return Path(self.kept("fetched", lambda: self.fetch(self.example())))

    def test_it_is_called_as_apr_calls_it(self) -> None:
        """The target takes a URL, and `progress` and `force` by name."""
        signature = inspect.signature(self.load())
        try:
            signature.bind("scheme://name", progress=None, force=False)
            signature.bind("scheme://name")
        except TypeError as error:
            raise AssertionError(f"fetch{signature} cannot be called: {error}") from None

    def test_an_unknown_name_is_not_found(self) -> None:
        """A name that does not exist is a NotFound that repeats the name."""
        with sandbox():
            error = self._refusal(f"{self.name}://{NOWHERE}")
        if isinstance(error, InputOutputError):
            skip(f"it cannot be reached: {error.message}")
        assert isinstance(error, NotFound), (
            f"raises {type(error).__name__}: {error.message}; expected NotFound"
        )
        assert NOWHERE in f"{error.message} {error.hint}", (
            f"{error.message!r} does not say which name was not found"
        )

    def test_a_url_of_nothing_is_refused(self) -> None:
        """A URL without a name, or one that climbs out, is an error with a message."""
        for name in ("", "/", f"../{NOWHERE}", f"{NOWHERE}/../../{NOWHERE}"):
            with sandbox():
                error = self._refusal(f"{self.name}://{name}")
            assert error.message.strip(), f"the error for {self.name}://{name} says nothing"

    def test_a_failed_fetch_leaves_nothing_behind(self) -> None:
        """After an error there are no files, neither here nor in caches and temporary folders."""
        with sandbox() as folder:
            self._refusal(f"{self.name}://{NOWHERE}")
            left = [str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()]
        assert not left, f"a fetch that failed leaves {', '.join(sorted(left))}"

    def _refusal(self, url: str) -> AprError:
        try:
            found = self.fetch(url)
        except AprError as error:
            return error
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            raise AssertionError(f"{url} raises {found}; expected an AprError") from None
        raise AssertionError(f"{url} gives {found}; expected an AprError")

    def test_the_example_is_a_checkpoint(self) -> None:
        """What is fetched is the directory of a checkpoint: config.json and weights."""
        found = self.fetch(self.example())
        assert isinstance(found, Path), f"fetch returned a {type(found).__name__}, expected a Path"
        assert found.is_dir(), f"{self.example()} gives {found}, which is no directory"
        config = found / "config.json"
        assert config.is_file(), f"{found} has no config.json"
        content = json.loads(config.read_text("utf-8"))
        assert isinstance(content, dict), "config.json is no JSON object"
        assert list(found.glob("*.safetensors")), f"{found} has no *.safetensors file"

    def test_fetching_again_gives_the_same(self) -> None:
        """A second fetch, forced or not, gives the same files."""
        first = contents(self.fetched())
        for force in (False, True):
            again = contents(Path(self.fetch(self.example(), force=force)))
            changed = [n for n in sorted({*first, *again}) if first.get(n) != again.get(n)]
            assert not changed, f"fetched again (force={force}), other files: {', '.join(changed)}"

    def test_progress_is_a_name_and_a_number_of_bytes(self) -> None:
        """`progress` is called with (str, int), or not at all."""
        calls: list[tuple[Any, ...]] = []
        self.fetch(self.example(), progress=lambda *call: calls.append(call), force=True)
        for call in calls:
            assert [type(part) for part in call] == [str, int], (
                f"progress was called with {call}, expected a name and a number of bytes"
            )

    def test_fetching_prints_nothing(self) -> None:
        """Nothing is printed: `apr import --json` prints JSON alone."""
        printed = io.StringIO()
        with redirect_stdout(printed):
            self.fetch(self.example())
        assert not printed.getvalue(), f"fetch prints {printed.getvalue()[:80]!r}"


@contextmanager
def sandbox() -> Iterator[Path]:
    """An empty folder that is the working directory, the home and the place of temporary files."""
    with tempfile.TemporaryDirectory(prefix="apr-kit-") as made:
        folder = Path(made).resolve()
        homes = dict.fromkeys(HOMES, made) | {"HF_HOME": str(folder / "hub")}
        with patch.dict(os.environ, homes), patch.object(tempfile, "tempdir", made), chdir(folder):
            yield folder


def contents(path: Path) -> Mapping[str, str]:
    """SHA-256 of every file of a directory, or of the one file, by relative name."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): _sha256(p) for p in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
