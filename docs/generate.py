"""Reference pages from the code: `python docs/generate.py` writes them, `--check` compares them.

A page is a function that returns Markdown. Nothing here depends on what is installed beside the
core: plugins of this repository are read from their sources.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from describing import (
    code,
    doc,
    field_table,
    first,
    is_protocol,
    load,
    members,
    plain_field,
    signature,
    table,
    with_code,
)

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
sys.path[:0] = [str(ROOT), *(str(path) for path in sorted(ROOT.glob("plugins/*/src")))]

NOTE = "<!-- Written by docs/generate.py from {source}. Change that, then run `make docs`. -->\n"
WIDTH = 80  # of help texts
# what each kind's target makes; for the others their declaration says it in words
PROTOCOLS = {
    "family": "apr_core.family.modelspec:FamilyPlugin",
    "attention": "apr_core.model.decoder:Mixer",
    "mlp": "apr_core.model.decoder:FeedForward",
    "quantizer": "apr_core.family.modelspec:QuantizerPlugin",
    "recipe": "apr_core.family.modelspec:RecipePlugin",
    "backend": "apr_core.ops.binding:BackendPlugin",
}


def hooks() -> str:
    """Every hook: signature, meaning, an example that runs."""
    from apr_core.declarations import HOOKS

    lines = [
        "# Hooks\n",
        "A plugin's hooks module implements any of these. Each takes nothing and returns",
        "[declarations](declarations.md); each may be called any number of times, in any order.\n",
    ]
    for hook, cls in HOOKS.items():
        text, example = _with_example(cls)
        lines += [f"## {hook}\n", f"`{hook}() -> Iterable[{cls.__name__}]`\n", f"{text}\n"]
        lines += [
            "```python",
            f"from apr_core.plugin import {cls.__name__}, hookimpl",
            "\n\n@hookimpl",
            f"def {hook}():",
            textwrap.indent(f"return [{textwrap.indent(example, ' ' * 8).strip()}]", " " * 4),
            "```\n",
        ]
    return "\n".join(lines)


def _with_example(declaration: type) -> tuple[str, str]:
    """What a declaration's docstring says, and the example that is its last paragraph."""
    text, _, example = doc(declaration).rpartition("\n\n")
    return text, example


def by_name(name: str) -> tuple[str, str]:
    """In the order of an index; of `Op` and `op`, always the same one first."""
    return name.lower(), name


def declarations() -> str:
    """Every record a hook may return, its fields, and what its target has to be."""
    from apr_core import declarations as module

    common = [f.name for f in fields(module.Declaration)]
    lines = [
        "# Declarations\n",
        "Frozen records that say what a plugin provides, without importing it. All fields but",
        '`name` and `target` are given by name: `Family("mine", "apr_mine.family:Mine", ...)`.',
        "Fields are text, numbers and tuples of these, since they are remembered between runs.\n",
        "## Every declaration\n",
        *field_table(module, module.Declaration, ()),
    ]
    for hook, cls in module.HOOKS.items():
        lines += [f"## {cls.__name__}\n", f"Returned by [`{hook}`](hooks.md).\n"]
        lines += [f"{_with_example(cls)[0]}\n", *field_table(module, cls, common)]
        lines += _target(cls.kind)
    for cls in (module.Layout, module.Numbers):
        lines += [f"## {cls.__name__}\n", f"{doc(cls)}\n", *field_table(module, cls, ())]
    return "\n".join(lines)


def _target(kind: str) -> Iterator[str]:
    """What a protocol asks of the target of a kind."""
    if kind not in PROTOCOLS:
        return
    protocol = load(PROTOCOLS[kind])
    yield f"**Its target.** {doc(protocol)}\n"
    yield from table(("member", "meaning"), list(members(protocol)))


def ops() -> str:
    """Every op of the core, and those that plugins of this repository bring."""
    from apr_core.ops import CORE_OPS

    lines = [
        "# Ops\n",
        "The vocabulary between families and backends. A reference takes the array namespace `xp`",
        "first, which a mixer does not write: it calls `o.rms_norm(x, w, eps, offset)`. A",
        "composite has a default body in terms of other ops; a backend may replace it by one",
        "kernel. Rows `T` are tokens of any number of sequences: `step` says which.\n",
        "## Of the core\n",
    ]
    for entry in CORE_OPS.values():
        lines += _described_op(entry)
    for package, targets in _brought_ops().items():
        lines += [f"## Brought by {package}\n"]
        for target in targets:
            lines += _described_op(load(target))
    return "\n".join(lines)


def _described_op(entry: Any) -> list[str]:
    signature = inspect.signature(entry.body)
    names = ", ".join(list(signature.parameters)[1:])
    kind = "composite" if entry.is_composite else "reference"
    return [f"### {entry.name}\n", f"`{entry.name}({names})`, a {kind}.\n", f"{doc(entry.body)}\n"]


def _brought_ops() -> dict[str, list[str]]:
    """{package: targets} of the ops that plugins of this repository bring."""
    from apr_core.declarations import Attention, Mlp

    ops: dict[str, list[str]] = {}
    for package, declarations in _declared().items():
        brings = [p for d in declarations if isinstance(d, Attention | Mlp) for p in d.brings]
        ops[package] = list(dict.fromkeys(target for _, target in brings))
    return {package: targets for package, targets in ops.items() if targets}


def _declared() -> dict[str, list[Any]]:
    """{package: declarations} of the plugins of this repository."""
    from apr_core.discovery.collecting import collect

    hooks = sorted(ROOT.glob("plugins/*/src/*/hooks.py"))
    return {path.parent.name: list(collect(f"{path.parent.name}.hooks")) for path in hooks}


def errors() -> str:
    """Every error, what it derives from, and its exit code."""
    import apr_core.plugin
    from apr_core import errors as module

    known = [c for c in vars(module).values() if inspect.isclass(c)]
    classes = [c for c in known if issubclass(c, module.AprError)]
    public = apr_core.plugin.__all__
    rows = [
        (
            f"`{c.__name__}`",
            f"`{c.__base__.__name__}`",
            str(c.exit_code),
            "yes" if c.__name__ in public else "",
            doc(c).replace("\n", " "),
        )
        for c in classes
    ]
    return "\n".join([
        "# Errors and exit codes\n", f"{doc(module)}\n",
        "`apr` prints `error: MESSAGE` and `hint: HINT` to stderr and ends with the code. 0 is",
        "success; an interrupt ends with 130, SIGTERM with 143. `APR_DEBUG=1` adds a traceback.\n",
        "The public ones are imported from `apr_core.plugin`: those are what a plugin raises.\n",
        *table(("error", "is a", "exit code", "public", "meaning"), rows),
    ])  # fmt: skip


def cli() -> str:
    """The help text of every command."""
    import apr_core.cli
    from apr_core.registry import Registry

    lines = ["# Commands\n", "What `--help` says, with all packages of this repository.\n"]
    here = Registry.from_declarations(_declared())  # whatever is installed
    with mock.patch("apr_core.registry.get_registry", lambda refresh=False: here):
        for path, context in _commands(_context(apr_core.cli.apr, "apr", None)):
            lines += [f"{'#' * min(len(path) + 1, 3)} {' '.join(path)}\n"]
            lines += ["```text", context.get_help().rstrip(), "```\n"]
    return "\n".join(lines)


def _commands(context: Any, path: Sequence[str] = ("apr",)) -> Iterator[tuple[Sequence[str], Any]]:
    """Every command, depth first, with its context."""
    import click

    yield path, context
    group = context.command
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command
            yield from _commands(_context(command, name, context), (*path, name))


def _context(command: Any, name: str, parent: Any) -> Any:
    return command.make_context(name, [], parent, resilient_parsing=True, terminal_width=WIDTH)


# what the core's keys and every variable mean; commands' keys are options, whose help says it
KEYS = {
    "plugins.disable": "distributions, or `distribution:entry point`, that are not used",
    "plugins.prefer": "`distribution:name` that wins where two plugins claim a name",
    "cache.dir": "where compiled kernels and what was found out about plugins are kept",
}
VARIABLES = {
    "APR_CONFIG": "the configuration file",
    "APR_CACHE": "the cache folder, before `[cache] dir`",
    "APR_STORE": "the model store; by default `apr/models` in `$XDG_DATA_HOME` (`~/.local/share`)",
    "APR_PLUGINS": "use these distributions alone, separated by commas",
    "APR_PLUGINS_BLOCK": "do not use these distributions, separated by commas",
    "APR_NO_PLUGINS": "`1`: use no plugins, as `--no-plugins`",
    "APR_TRACE_PLUGINS": "`1`: show every call of a hook",
    "APR_DEBUG": "`1`: show tracebacks",
    "APR_API_KEY": "keys that `apr serve` asks for, separated by commas",
    "APR_CPU_LEVEL": "a lower instruction set for the CPU's kernels, such as `x86-64-v3`",
    "APR_CUDA_TUNE": "`off`: time no launch of a GPU kernel; `again`: time all anew",
    "HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN": "of the hub's own client",
}


ABOUT_CONFIGURATION = """\
The file is `$APR_CONFIG`, else `apr/config.toml` in `$XDG_CONFIG_HOME` (by default `~/.config`). It
is TOML. An unknown section or key stops every command but `apr doctor`, which shows what is set.
Options of the command line come before the environment, and that before the file.
"""


def configuration() -> str:
    """Every key of the configuration file, and every environment variable."""
    from apr_core.settings import KNOWN, TYPES, WHAT

    lines = ["# Configuration\n", ABOUT_CONFIGURATION, "## The file\n"]
    rows = [
        (code(f"[{section}] {key}"), WHAT[kind], KEYS[f"{section}.{key}"])
        for section, keys in KNOWN.items()
        for key, kind in keys.items()
    ]
    for declaration in (d for declared in _declared().values() for d in declared):
        for key, kind in getattr(declaration, "settings", ()):
            options = {o.name: o for o in load(declaration.target).params}
            rows.append(
                (code(f"[{declaration.name}] {key}"), WHAT[TYPES[kind]], _help(options, key))
            )
    lines += table(("key", "type", "meaning"), rows)
    lines += ["## The environment\n"]
    lines += table(
        ("variable", "meaning"), [(code(name), what) for name, what in VARIABLES.items()]
    )
    return "\n".join(lines)


def _help(options: dict[str, Any], key: str) -> str:
    option = options.get(key.replace("-", "_"))
    return str(getattr(option, "help", None) or f"the command's {key}")


def contract_schema() -> str:
    """Every path of a contract, from the schema and the comments in it."""
    text = (ROOT / "contracts" / "_schema.yaml").read_text("utf-8")
    head, _, body = text.partition("fields:\n")
    about = " ".join(line.lstrip("# ") for line in head.splitlines() if line.startswith("#"))
    about = about.replace("A path ending in `?` is optional; `*`", "`*`")  # a column says it
    rows = []
    for line in body.splitlines():
        entry, _, comment = line.partition("#")
        path, _, type_ = entry.strip().partition(": ")
        rows.append((code(path.replace("?", "")), code(type_.strip()),
                     "" if path.endswith("?") else "yes", comment.strip()))  # fmt: skip
    return "\n".join([
        "# The schema of contracts\n", f"{about}\n",
        "What the fields are for: [contracts](contracts.md).\n",
        *table(("path", "type", "required", "note"), rows),
    ])  # fmt: skip


def conformance() -> str:
    """Every check of every kit, by its sentence."""
    from apr_devkit import kits as testing
    from apr_devkit.kits.checks import checks_of, sentence_of

    kits = [getattr(testing, n) for n in testing.__all__ if n.endswith("Conformance")]
    base = testing.PluginConformance
    common = checks_of(base)
    lines = [
        "# Conformance kits\n",
        "Classes in `apr_devkit.kits`. In pytest, a subclass that names the plugin is all there",
        "is to write; `apr plugins check NAME` runs the same checks. A check that is skipped says",
        "why and has not passed.\n",
    ]
    for kit in sorted(kits, key=lambda k: (k is not base, k.__name__)):
        own = [name for name in checks_of(kit) if kit is base or name not in common]
        more = "" if kit is base else f", after the {len(common)} of every plugin"
        lines += [f"## {kit.__name__}\n", with_code(doc(kit)), f"{len(own)} checks{more}:\n"]
        rows = [(sentence_of(kit, name), code(name)) for name in own]
        lines += table(("what is checked", "as a test"), rows)
    return "\n".join(lines)


def api() -> str:
    """Everything public."""
    import apr_core.plugin
    import apr_core.runtime
    from apr_devkit import kits as testing

    lines = [
        "# Public names\n",
        "What plugins and programs may import of the core. Everything else is private and may",
        "change: see [the plugin API](../explanation/plugin-api.md).\n",
    ]
    for name in sorted(apr_core.__all__, key=by_name):
        lines += _described(name, getattr(apr_core, name))
    lines += ["# apr_core.plugin\n", f"{doc(apr_core.plugin)}\n"]
    for name in sorted({*apr_core.plugin.__all__} - {*apr_core.__all__}, key=by_name):
        lines += _described(name, getattr(apr_core.plugin, name))
    more = sorted({*apr_core.runtime.__all__} - {*apr_core.__all__}, key=by_name)
    lines += ["# apr_core.runtime\n", f"{doc(apr_core.runtime)} Beside names of `apr_core`:\n"]
    lines += table(("name", "what it is"), [(code(n), _short(apr_core.runtime, n)) for n in more])
    lines += [
        "# apr_devkit.kits\n",
        "For tests: [kits](conformance.md), and what they are made of.\n",
        *table(
            ("name", "what it is"),
            [(code(n), first(getattr(testing, n))) for n in sorted(testing.__all__)],
        ),
    ]
    return "\n".join(lines)


def _short(module: ModuleType, name: str) -> str:
    """A line on a name: of classes and functions what they say, of others what they are."""
    value = getattr(module, name)
    if inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value):
        return first(value)
    return f"`{value!r}`" if isinstance(value, int | str) else f"a `{type(value).__name__}`"


def _described(name: str, value: Any) -> Iterator[str]:
    yield f"## {name}\n"
    ours = inspect.isclass(value) or inspect.isfunction(value)
    if inspect.ismodule(value) or (ours and not value.__module__.startswith("apr_core")):
        yield f"{first(value)}\n"
        return
    if not ours:
        plain = isinstance(value, int | str | tuple)
        yield f"`{value!r}`\n" if plain else f"A `{type(value).__name__}`.\n"
        return
    if is_dataclass(value):
        shown = ", ".join(plain_field(f) for f in fields(value) if f.init)
        yield f"`{name}({shown})`\n"
    elif inspect.isfunction(value) or ("__init__" in vars(value) and not is_protocol(value)):
        yield f"`{name}{signature(value)}`\n"
    yield f"{first(value)}\n"
    if inspect.isclass(value) and not is_dataclass(value):
        rows = [row for row in members(value) if not row[0].startswith("`__")]
        yield from table(("member", "meaning"), rows) if rows else ()


PAGES: dict[str, tuple[str, Callable[[], str]]] = {
    "hooks.md": ("apr_core/declarations.py", hooks),
    "declarations.md": ("apr_core/declarations.py", declarations),
    "ops.md": ("apr_core/ops and the plugins' ops", ops),
    "errors.md": ("apr_core/errors.py", errors),
    "cli.md": ("apr_core/cli", cli),
    "configuration.md": ("apr_core/settings.py and the plugins' commands", configuration),
    "contract-schema.md": ("contracts/_schema.yaml", contract_schema),
    "conformance.md": ("plugins/apr_devkit", conformance),
    "api.md": ("apr_core.__all__", api),
}


def pages() -> dict[Path, str]:
    """{path: text} of all generated pages."""
    return {
        REFERENCE / name: NOTE.format(source=source) + "\n" + make().rstrip() + "\n"
        for name, (source, make) in PAGES.items()
    }


def differing() -> list[Path]:
    """The pages that are not what the code says."""
    return [
        path
        for path, text in pages().items()
        if not path.exists() or path.read_text("utf-8") != text
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or with --check say which differ; 1 if one does."""
    parser = argparse.ArgumentParser(description="Reference pages from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    checking = parser.parse_args(arguments).check
    wrong = differing()
    for path in wrong:
        name = path.relative_to(ROOT)
        if checking:
            print(f"{name} is not what the code says: run `make docs`")
            continue
        beside = path.with_suffix(".md.part")
        beside.write_text(pages()[path], "utf-8")
        beside.replace(path)
        print(f"wrote {name}")
    return 1 if checking and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
