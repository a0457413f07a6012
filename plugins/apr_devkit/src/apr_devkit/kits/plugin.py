"""The kit every plugin passes, whatever it provides: light, pure hooks and targets that exist."""

from __future__ import annotations

import json
from typing import Any

from apr_core.declarations import SUPPORTED_APIS, Declaration
from apr_core.discovery import PluginRow, installed, normalized
from apr_core.discovery.collecting import collect
from apr_core.registry import Owned, Registry, get_registry
from apr_devkit.kits.checks import Kit, skip
from apr_devkit.kits.fresh import run_fresh

LONGEST = 60  # seconds; what imports nothing takes a tenth of one
# runs in a process of its own: what does importing the hooks module and calling the hooks import?
PROBE = """
import json, os, sys, tempfile
import pluggy
from apr_core.discovery import installed
from apr_core.discovery.collecting import collect
founds = [f for f in installed() if [f.distribution, f.entry_point] == sys.argv[1:3]]
before = set(sys.modules)
answer = os.dup(1)
with tempfile.TemporaryFile() as printed:  # descriptors: not all that prints asks sys.stdout
    os.dup2(printed.fileno(), 1)
    os.dup2(printed.fileno(), 2)
    for found in founds:
        list(collect(found.module))
    sys.stdout.flush()
    sys.stderr.flush()
    printed.seek(0)
    text = printed.read().decode(errors="replace")
new = {name.partition(".")[0] for name in set(sys.modules) - before}
own = {found.module.partition(":")[0].partition(".")[0] for found in founds}
strange = new - own - set(sys.stdlib_module_names) - {"apr_core"}
os.write(answer, json.dumps({"modules": sorted(strange), "printed": text}).encode())
os._exit(0)
"""


class PluginConformance(Kit):
    """Checks of one installed distribution.

        class TestMine(PluginConformance):
            plugin = "apr-mine"

    Kits of a kind derive from this and find the distribution by the name they are given.
    """

    kind: str = ""  # of the declaration a derived kit is about
    plugin: str = ""

    def subject(self) -> str:
        """`kind name`, or `plugin distribution`."""
        return f"{self.kind} {self.name}" if self.kind else f"plugin {self.plugin}"

    @property
    def name(self) -> str:
        """The checked declaration's name: the class attribute called like the kind."""
        found: str = getattr(self, self.kind)
        assert found, f'{type(self).__name__} must say which: {self.kind} = "..."'
        return found

    @property
    def registry(self) -> Registry:
        """All installed plugins."""
        return get_registry()

    @property
    def owned(self) -> Owned:
        """The declaration and the distribution it comes from."""
        return self.registry.get(self.kind, self.name)

    @property
    def declaration(self) -> Any:
        """The checked declaration."""
        return self.owned.declaration

    def load(self) -> Any:
        """The declaration's target. Raises PluginBroken."""
        return self.registry.load(self.owned)

    def rows(self) -> list[PluginRow]:
        """All entry points of the distribution."""
        wanted = normalized(self.plugin) if self.plugin else self.owned.distribution
        rows = [row for row in self.registry.plugins if row.distribution == wanted]
        assert rows, f"no distribution called {wanted!r} with an entry point in group 'apr'"
        return rows

    def found(self) -> list[PluginRow]:
        """The same entry points, as the packaging metadata has them."""
        names = {(row.distribution, row.entry_point) for row in self.rows()}
        return [f for f in installed() if (f.distribution, f.entry_point) in names]

    def declared(self) -> list[Declaration]:
        """Everything the distribution provides."""
        return [d for row in self.rows() for d in row.declarations]

    def test_plugin_is_usable(self) -> None:
        """The hooks module loads and every declaration in it makes sense."""
        for row in self.rows():
            if row.status in ("disabled", "unavailable"):
                skip(f"{row.name} is {row.status}: {row.reason}")
            assert row.status == "ok", f"{row.name} is {row.status}: {row.reason}"
            assert row.declarations, f"{row.name} declares nothing"

    def test_hooks_are_pure(self) -> None:
        """Hooks return the same declarations when they are called again."""
        for found in self.found():
            first, second = list(collect(found.module)), list(collect(found.module))
            assert first == second, f"{found.module}: {first} first, {second} then"

    def test_hooks_module_is_light(self) -> None:
        """Importing the hooks module imports nothing but the standard library and apr_core."""
        for found in self.found():
            strange = _probe(found)["modules"]
            assert not strange, (
                f"{found.module} imports {', '.join(strange)}: name targets as strings "
                "'module:Attr' and import inside them"
            )

    def test_hooks_are_silent(self) -> None:
        """Importing the hooks module prints nothing."""
        for found in self.found():
            printed = _probe(found)["printed"]
            assert not printed, f"{found.module} prints {printed[:80]!r}"

    def test_targets_exist(self) -> None:
        """Every target can be imported."""
        for row in self.rows():
            if row.status == "unavailable":
                skip(f"{row.name} is {row.status}: {row.reason}")
            for declaration in row.declarations:
                self.registry.load(Owned(declaration, row.distribution, row.version))

    def test_declarations_say_what_they_are(self) -> None:
        """Every declaration has a one-line summary and an API number this core supports."""
        for declaration in self.declared():
            where = f"{declaration.kind} {declaration.name!r}"
            summary = declaration.summary
            assert summary.strip(), f"{where} has no summary"
            assert "\n" not in summary, f"{where}: the summary has several lines"
            assert declaration.api in SUPPORTED_APIS, f"{where} targets API {declaration.api}"

    def test_names_are_free(self) -> None:
        """No other installed distribution claims one of its names."""
        for declaration in self.declared():
            others = {
                o.qualified for o in self.registry.declarations(declaration.kind)
                if o.declaration.name == declaration.name
            }  # fmt: skip
            assert len(others) == 1, f"{declaration.kind} name is claimed twice: {sorted(others)}"


def _probe(found: PluginRow) -> dict[str, Any]:
    try:
        answer = run_fresh(PROBE, found.distribution, found.entry_point, longest=LONGEST)
    except AssertionError as error:
        raise AssertionError(f"{found.module}: {error}") from None
    seen: dict[str, Any] = json.loads(answer)
    return seen
