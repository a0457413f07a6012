"""What a conformance kit is: a class whose `test_` methods are checks, run by pytest or without it.

A check passes, fails with an AssertionError that says what was found and expected, or is skipped
by `skip("why")`. Its docstring is the sentence that `apr plugins check` prints.
"""

from __future__ import annotations

import inspect
import os
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, TypeVar
from unittest import SkipTest

Outcome = Literal["passed", "failed", "skipped"]
T = TypeVar("T")


def skip(reason: str) -> NoReturn:
    """Leave the running check out. The reason is shown: a skipped check did not pass."""
    raise SkipTest(reason)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What became of one check. `subject` is `kind name`; `reason` says why it did not pass."""

    subject: str
    check: str
    sentence: str
    outcome: Outcome
    reason: str = ""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


class Kit:
    """Root of all kits. A new instance runs every check; `kept` shares what is dear to make."""

    _kept: ClassVar[dict[str, Any]] = {}

    def subject(self) -> str:
        """What is checked, as `kind name`."""
        return type(self).__name__

    @classmethod
    def kept(cls, key: str, make: Callable[[], T]) -> T:
        """`make()`, called once for this class and key."""
        if "_kept" not in cls.__dict__:
            cls._kept = {}
        if key not in cls._kept:
            cls._kept[key] = make()
        found: T = cls._kept[key]
        return found

    @classmethod
    def folder(cls) -> Path:
        """A temporary folder of this class, removed when the process ends."""
        made = cls.kept("folder", lambda: tempfile.TemporaryDirectory(prefix="apr-kit-"))
        return Path(made.name)


def checks_of(kit: type[Kit]) -> list[str]:
    """Names of its checks: base classes' first, each class's in the order they are written."""
    names: dict[str, None] = {}
    for cls in reversed(kit.__mro__):
        names |= dict.fromkeys(n for n in vars(cls) if n.startswith("test_"))
    return [name for name in names if callable(getattr(kit, name, None))]


def run_checks(kit: type[Kit], names: Iterable[str] | None = None) -> Iterator[CheckResult]:
    """Run a kit's checks, all or the named ones, one after the other."""
    for name in checks_of(kit) if names is None else names:
        yield run_check(kit, name)


def run_check(kit: type[Kit], name: str) -> CheckResult:
    """Run one check. Whatever it raises, but an interrupt, is its result."""
    sentence, subject = sentence_of(kit, name), kit.__name__
    try:
        instance = kit()
        subject = instance.subject()
        getattr(instance, name)()
    except SkipTest as skipped:
        return CheckResult(subject, name, sentence, "skipped", str(skipped))
    except AssertionError as failure:
        return CheckResult(subject, name, sentence, "failed", _failed(failure))
    except (Exception, SystemExit) as error:
        if os.environ.get("APR_DEBUG") == "1":
            traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return CheckResult(subject, name, sentence, "failed", reason)
    return CheckResult(subject, name, sentence, "passed")


def _failed(failure: AssertionError) -> str:
    if str(failure):
        return str(failure)
    where = traceback.extract_tb(failure.__traceback__)[-1]
    return f"{where.line} ({Path(where.filename).name}:{where.lineno})"


def sentence_of(kit: type[Kit], name: str) -> str:
    """The first line of the check's docstring, or its name as words."""
    doc = inspect.getdoc(getattr(kit, name)) or ""
    return doc.splitlines()[0] if doc else name.removeprefix("test_").replace("_", " ")
