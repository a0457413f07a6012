"""Conformance kits: classes whose `test_` methods are checks, run by pytest or without it.

A check passes, fails with an AssertionError that says what was found and expected, or is skipped by
`skip("why")`. Its docstring is the sentence that `apr plugins check` prints.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NoReturn, TypeVar
from unittest import SkipTest

from apr_core.plugin import AprError
from apr_core.runtime import Owned, PluginRow, Registry, get_registry, normalized

Outcome = Literal["passed", "failed", "skipped"]
T = TypeVar("T")
E = TypeVar("E", bound=Exception)
SHOWN = 4  # problems shown of one check
LONGEST = 300  # seconds of a fresh process; a first run may compile
CALL = """
import json, sys
from apr_devkit.kits.checks import attribute
print(json.dumps(attribute(sys.argv[1])(*json.loads(sys.argv[2]))))
"""


def skip(reason: str) -> NoReturn:
    """Skip the running check. The reason is shown: a skipped check did not pass."""
    raise SkipTest(reason)


def no(problems: Sequence[str]) -> None:
    """Fail with the first of these problems, if there are any."""
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    assert not problems, "; ".join(problems[:SHOWN]) + more


def equal(what: str, actual: object, expected: object) -> None:
    """Fail unless both are equal, and say what they are."""
    assert actual == expected, f"{what} is {actual!r}, expected {expected!r}"


def refusal(expected: type[E], what: str, call: Callable[..., Any], *arguments: Any) -> E | None:
    """Return the error of this type that a call raises, or None. Fails if it raises another."""
    try:
        call(*arguments)
    except expected as error:
        return error
    except Exception as error:
        said = f"{what} raises {type(error).__name__}: {error}"
        raise AssertionError(f"{said}, not {expected.__name__}") from error
    return None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check. `subject` is `kind name`; `reason` says why it did not pass."""

    subject: str
    check: str
    sentence: str
    outcome: Outcome
    reason: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return the fields as a dict."""
        return asdict(self)


class Kit:
    """Root of all kits. Every check runs on a new instance; `once` shares between them."""

    _shared: ClassVar[dict[str, Any]] = {}

    def subject(self) -> str:
        """Return what is checked, as `kind name`."""
        return type(self).__name__

    @classmethod
    def once(cls, key: str, make: Callable[[], T]) -> T:
        """Return `make()`, called once for this class and key."""
        if "_shared" not in cls.__dict__:
            cls._shared = {}
        if key not in cls._shared:
            cls._shared[key] = make()
        value: T = cls._shared[key]
        return value

    @classmethod
    def folder(cls) -> Path:
        """Return a temporary folder of this class, removed when the process ends."""
        make = partial(tempfile.TemporaryDirectory, prefix="apr-kit-")
        return Path(cls.once("folder", make).name)


class shared(Generic[T]):
    """A property that is computed once for each class of kits."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self.make, self.__doc__ = make, make.__doc__

    def __get__(self, kit: Kit, owner: Any = None) -> T:
        return kit.once(self.make.__name__, partial(self.make, kit))


def checks_of(kit: type[Kit]) -> list[str]:
    """Return the names of a kit's checks: base classes' first, in the order they are written."""
    names = dict.fromkeys(name for cls in reversed(kit.__mro__) for name in vars(cls))
    return [n for n in names if n.startswith("test_") and callable(getattr(kit, n, None))]


def run_checks(kit: type[Kit], names: Iterable[str] | None = None) -> Iterator[CheckResult]:
    """Run a kit's checks, all or the named ones, one after the other."""
    for name in checks_of(kit) if names is None else names:
        yield run_check(kit, name)


def run_check(kit: type[Kit], name: str) -> CheckResult:
    """Run one check. Any exception but an interrupt becomes its result."""
    subject, outcome, reason = kit.__name__, "passed", ""
    try:
        instance = kit()
        subject = instance.subject()
        getattr(instance, name)()
    except SkipTest as skipped:
        outcome, reason = "skipped", str(skipped)
    except (Exception, SystemExit) as error:
        outcome, reason = "failed", _said(error)
    return CheckResult(subject, name, sentence_of(kit, name), outcome, reason)  # type: ignore[arg-type]


def _said(error: BaseException) -> str:
    """Return an error's message; what is not meant to be read by a person gets its place added."""
    if isinstance(error, AssertionError) and str(error):
        return str(error)
    if os.environ.get("APR_DEBUG") == "1":
        traceback.print_exc()
    if isinstance(error, AprError):
        return error.message
    where = traceback.extract_tb(error.__traceback__)[-1]
    what = where.line if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    return f"{what} ({Path(where.filename).name}:{where.lineno})"


def sentence_of(kit: type[Kit], name: str) -> str:
    """Return the first line of the check's docstring, or its name as words."""
    doc = inspect.getdoc(getattr(kit, name)) or ""
    return doc.splitlines()[0] if doc else name.removeprefix("test_").replace("_", " ")


def attribute(target: str) -> Any:
    """Return the object that a "module:Attr" names."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def run_fresh(
    program: str, *arguments: str, hash_seed: int | None = None, longest: float = LONGEST
) -> str:
    """Run a program in a new process, which has imported nothing; return the last line it prints.

    `arguments` are its `sys.argv[1:]`. Strings hash by `hash_seed`, by default not as they do here.
    Raises AssertionError if it fails or takes longer than `longest` seconds.
    """
    if hash_seed is None:
        hash_seed = 2 if os.environ.get("PYTHONHASHSEED") == "1" else 1
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    env = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": str(hash_seed)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=env, capture_output=True, text=True, check=False, timeout=longest,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise AssertionError(f"in a process of its own it takes over {longest:g} s") from None
    said = done.stderr.strip().splitlines()
    assert done.returncode == 0, f"in a process of its own it fails: {' '.join(said[-1:])}"
    return (done.stdout.splitlines() or [""])[-1]


def call_fresh(function: str, *arguments: Any, hash_seed: int | None = None) -> Any:
    """Return what "module:function" returns in a new process. Arguments and result are JSON."""
    return json.loads(run_fresh(CALL, function, json.dumps(arguments), hash_seed=hash_seed))


# run in a separate process: reports what importing the hooks module and calling the hooks imports
PROBE = """
import json, os, sys, tempfile
import pluggy
from apr_core.runtime import collect
before = set(sys.modules)
answer = os.dup(1)
with tempfile.TemporaryFile() as printed:  # descriptors: not all that prints asks sys.stdout
    os.dup2(printed.fileno(), 1)
    os.dup2(printed.fileno(), 2)
    declared = [str(list(collect(sys.argv[1]))) for _ in range(2)]
    sys.stdout.flush()
    sys.stderr.flush()
    printed.seek(0)
    text = printed.read().decode(errors="replace")
new = {name.partition(".")[0] for name in set(sys.modules) - before}
own = sys.argv[1].partition(":")[0].partition(".")[0]
strange = new - {own, "apr_core", *sys.stdlib_module_names}
report = {"modules": sorted(strange), "printed": text, "declared": declared}
os.write(answer, json.dumps(report).encode())
os._exit(0)
"""
PROBE_LONGEST = 60  # seconds; without heavy imports it takes a tenth of one


class PluginConformance(Kit):
    """Checks of one installed distribution.

        class TestMine(PluginConformance):
            plugin = "apr-mine"

    Kits of a kind derive from this and find the distribution by the name they are given.
    """

    kind: str = ""  # of the declaration a derived kit is about
    plugin: str = ""

    def subject(self) -> str:
        """Return what is checked, as `kind name` or `plugin distribution`."""
        return f"{self.kind} {self.name}" if self.kind else f"plugin {self.plugin}"

    @property
    def name(self) -> str:
        """The checked declaration's name: the class attribute named like the kind."""
        name: str = getattr(self, self.kind)
        assert name, f'{type(self).__name__} must say which: {self.kind} = "..."'
        return name

    @property
    def registry(self) -> Registry:
        """The registry of this process."""
        return get_registry()

    @property
    def owned(self) -> Owned:
        """The checked declaration with its owner."""
        return self.registry.get(self.kind, self.name)

    @property
    def declaration(self) -> Any:
        """The checked declaration."""
        return self.owned.declaration

    def load(self) -> Any:
        """Return the declaration's target, imported."""
        return self.registry.load(self.owned)

    def rows(self) -> list[PluginRow]:
        """Return all entry points of the distribution."""
        wanted = normalized(self.plugin) if self.plugin else self.owned.distribution
        rows = [row for row in self.registry.plugins if row.distribution == wanted]
        assert rows, f"no distribution called {wanted!r} with an entry point in group 'apr'"
        return rows

    def test_plugin_is_usable(self) -> None:
        """The hooks module loads and every declaration in it makes sense."""
        for row in self.rows():
            if row.status in ("disabled", "unavailable"):
                skip(f"{row.name} is {row.status}: {row.reason}")
            assert row.status == "ok", f"{row.name} is {row.status}: {row.reason}"
            assert row.declarations, f"{row.name} declares nothing"

    def test_hooks_are_light_and_pure(self) -> None:
        """Hooks import only the standard library and apr_core, print nothing, and stay the same."""
        for module in (row.module for row in self.rows() if row.module):
            probe = json.loads(run_fresh(PROBE, module, longest=PROBE_LONGEST))
            heavy, printed = ", ".join(probe["modules"]), probe["printed"][:80]
            assert not heavy, (
                f"{module} imports {heavy}: name targets as strings 'module:Attr' and import "
                "inside them"
            )
            assert not printed, f"{module} prints {printed!r}"
            first, second = probe["declared"]
            assert first == second, f"{module}: {first} first, {second} then"

    def test_targets_exist(self) -> None:
        """Every target can be imported."""
        for row in self.rows():
            if row.status == "unavailable":
                skip(f"{row.name} is {row.status}: {row.reason}")
            for declaration in row.declarations:
                self.registry.load(Owned(declaration, row.distribution))

    def test_declarations_say_what_they_are(self) -> None:
        """Every declaration has a one-line summary, a supported API, and a name of its own."""
        for d in (d for row in self.rows() for d in row.declarations):
            where = f"{d.kind} {d.name!r}"  # the core refuses several lines and unsupported APIs
            assert d.summary.strip(), f"{where} has no summary"
            owners = self.registry.declarations(d.kind)
            claims = sorted({o.qualified for o in owners if o.declaration.name == d.name})
            assert len(claims) == 1, f"{where} is claimed twice: {claims}"
