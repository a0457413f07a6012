"""Plugins that misbehave, as packages on a path: what each does, and what its row must say."""

from __future__ import annotations

from pathlib import Path

HOOKS = (
    "from apr_core.plugin import {kind}, hookimpl\n\n"
    "@hookimpl\ndef {hook}():\n    return [{record}]\n"
)
TOY = 'Quantizer("{name}", "toy.codec:Toy", summary="a toy", block=32, bytes_per_block=18)'


def quantizer(name: str, before: str = "") -> str:
    """A hooks module that is fine but for what it does before."""
    record = TOY.format(name=name)
    return before + HOOKS.format(kind="Quantizer", hook="apr_quantizers", record=record)


def declaring(kind: str, hook: str, record: str) -> str:
    """A hooks module that returns one record."""
    return HOOKS.format(kind=kind, hook=hook, record=record)


# distribution -> (hooks module, a part of the reason; empty: its row is fine)
TORTURE: dict[str, tuple[str, str]] = {
    "x-raises": ("raise RuntimeError('boom')", "RuntimeError: boom"),
    "x-raises-base": ("raise BaseException('odd')", "BaseException: odd"),
    "x-exits": ("raise SystemExit(3)", "SystemExit: 3"),
    "x-missing": ("import module_that_is_not_there", "module_that_is_not_there"),
    "x-syntax": ("def (", "SyntaxError"),
    "x-not-text": ("\0\1\2", "Error"),
    "x-recursion": ("def f(): return f()\nf()", "RecursionError"),
    "x-memory": ("x = bytearray(1 << 60)", "MemoryError"),
    "x-misspelt": (declaring("Quantizer", "apr_quantisers", ""), "apr_quantisers"),
    "x-hook-raises": (
        "from apr_core.plugin import hookimpl\n\n@hookimpl\ndef apr_families():\n    1 / 0\n",
        "ZeroDivisionError",
    ),
    "x-hook-none": (
        "from apr_core.plugin import hookimpl\n\n@hookimpl\ndef apr_families():\n    return 7\n",
        "TypeError",
    ),
    "x-nonsense": (declaring("Quantizer", "apr_quantizers", "'text'"), "expected Quantizer"),
    "x-zero-block": (
        declaring("Quantizer", "apr_quantizers", 'Quantizer("z", "a:b")'), "must be positive",
    ),
    "x-no-target": (declaring("Family", "apr_families", 'Family("z", "nothing")'), "module:Attr"),
    "x-target-code": (
        declaring("Command", "apr_commands", 'Command("z", "os;os.system:x")'), "module:Attr",
    ),
    "x-name-blank": (declaring("Family", "apr_families", 'Family("a b", "m:F")'), "called 'a b'"),
    "x-summary-escapes": (
        declaring("Family", "apr_families", r'Family("z", "m:F", summary="\x1b[31mred")'),
        "one line of text",
    ),
    "x-fields": (
        declaring("Family", "apr_families", 'Family("z", "m:F", architectures={"a": object()})'),
        "its fields must be",
    ),
    "x-future": (
        declaring("Family", "apr_families", 'Family("z", "m:F", api=7)'), "targets API 7",
    ),
    "x-prints": (quantizer("prints", "print('hello')\n"), ""),
    "x-asks": (quantizer("asks", "input('your password? ')\n"), "EOFError"),
    "x-claims-command": (
        declaring("Command", "apr_commands", 'Command("run", "x:y", summary="not yours")'), "",
    ),
    "x-claims-format": (quantizer("q4_k"), ""),
    "x-target-gone": (
        declaring("Exporter", "apr_exporters", 'Exporter("gone", "not.there:X", summary="s")'), "",
    ),
}  # fmt: skip


def install(root: Path, distribution: str, source: str, entry: str = "") -> Path:
    """A distribution of one hooks module; the folder of its metadata."""
    module = distribution.replace("-", "_") + "_hooks"
    marked = f"import pathlib\nwith pathlib.Path({str(root / 'imports.log')!r}).open('a') as f:\n"
    marked += f"    f.write('{distribution}\\n')\n"
    text = source if distribution in ("x-syntax", "x-not-text") else marked + source
    (root / f"{module}.py").write_text(text)
    info = root / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[apr]\n{entry or distribution} = {module}\n")
    return info


def install_all(root: Path) -> None:
    """The whole set, and two that are half installed."""
    for distribution, (source, _) in TORTURE.items():
        install(root, distribution, source)
    (install(root, "x-no-metadata", "") / "METADATA").unlink()
    install(root, "x-no-module", "")
    (root / "x_no_module_hooks.py").unlink()
