"""Recipes, sources, exporters and commands: one of each that is right, and many that are not."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from pathlib import Path

import click

from apr_core.errors import AprError, NotFound

# Recipes: tests declare the formats "toy" and "gone".


class Recipe:
    def format_for(self, tensor):
        return "toy" if tensor.quant_class == "matrix" else "f16"


class Forgets(Recipe):
    def format_for(self, tensor):
        return None if tensor.quant_class == "head" else "toy"


class PicksWhatItDoesNotList(Recipe):
    def format_for(self, tensor):
        return "secret" if tensor.layer == 11 else "toy"


class NeedsALayer(Recipe):
    def format_for(self, tensor):
        return "toy" if tensor.layer < 3 else "f16"


class Counts(Recipe):
    asked = 0

    def format_for(self, tensor):
        Counts.asked += 1
        return "toy" if Counts.asked % 5 else "f16"


class PicksFromASet(Recipe):
    def format_for(self, tensor):
        return next(iter({"toy", "f16", "bf16", "f32", "source"}))


# Sources: each is `fetch`.

FILES = {"config.json": "{}", "model.safetensors": "weights"}
MADE = Path(tempfile.gettempdir()) / f"apr-broken-source-{os.getpid()}"


def fetch(url, *, progress=None, force=False):
    if url.partition("://")[2] != "small":
        raise NotFound(f"there is no {url}")
    if progress:
        progress("config.json", 2, 9)
    return write(FILES)


def write(files):
    MADE.mkdir(exist_ok=True)
    for path in MADE.iterdir():
        path.unlink()
    for name, text in files.items():
        (MADE / name).write_text(text)
    return MADE


fetch.example_url = "toy://small"


def takes_no_options(url):
    return fetch(url)


def raises_key_error(url, *, progress=None, force=False):
    raise KeyError(url)


def raises_another_error(url, *, progress=None, force=False):
    raise AprError(f"there is no {url}")


def says_no_name(url, *, progress=None, force=False):
    raise NotFound("no such model")


def finds_everything(url, *, progress=None, force=False):
    return write(FILES)


def leaves_a_part(url, *, progress=None, force=False):
    Path(tempfile.gettempdir(), "download.part").write_text("half")
    return fetch(url)


def leaves_a_lock_at_home(url, *, progress=None, force=False):
    (Path.home() / ".toy").mkdir()
    (Path.home() / ".toy" / "lock").touch()
    return fetch(url)


def returns_text(url, *, progress=None, force=False):
    return str(fetch(url))


def has_no_weights(url, *, progress=None, force=False):
    return write({"config.json": "{}"})


def has_a_list_for_config(url, *, progress=None, force=False):
    return write(FILES | {"config.json": "[]"})


def changes_when_forced(url, *, progress=None, force=False):
    return write(FILES | {"config.json": json.dumps({"forced": force})})


def reports_a_share(url, *, progress=None, force=False):
    if progress:
        progress("config.json", 0.5, 1)
    return fetch(url)


def reports_one_number(url, *, progress=None, force=False):
    if progress:
        progress(2)
    return fetch(url)


def prints(url, *, progress=None, force=False):
    print("fetching", url)
    return fetch(url)


# Exporters: names, and the bytes of all tensors.


def export(file, out, *, progress=None):
    part = out.with_name(f".{out.name}.part")
    try:
        write_all(file, part, progress)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return summary(file, out)


def write_all(file, path, progress, head=b""):
    with path.open("wb") as target:
        target.write(head)
        for name in file.tensors:
            raw = file.raw(name)
            target.write(name.encode() + raw.tobytes())
            if progress is not None:
                progress.describe(name)
                progress.advance(raw.nbytes)


def summary(file, out, **changes):
    size = out.stat().st_size if out.is_file() else 0
    summary = {"path": str(out), "tensors": len(file.tensors), "bytes": size}
    return summary | {"skipped": [], "warnings": []} | changes


def refuses(file, out, *, progress=None):
    raise AprError("knows no such family")


def raises_a_bug(file, out, *, progress=None):
    raise KeyError("apr.family")


def refuses_packed_in_the_middle(file, out, *, progress=None):
    export(file, out, progress=progress)
    if any(entry.format == "toy" for entry in file.tensors.values()):
        raise AprError("toy tensors have no place")
    return summary(file, out)


def returns_nothing(file, out, *, progress=None):
    export(file, out, progress=progress)


def forgets_warnings(file, out, *, progress=None):
    summary = export(file, out, progress=progress)
    return {key: value for key, value in summary.items() if key != "warnings"}


def warns_with_numbers(file, out, *, progress=None):
    return export(file, out, progress=progress) | {"warnings": [3]}


def names_another_path(file, out, *, progress=None):
    return export(file, out, progress=progress) | {"path": f"{out}.bin"}


def writes_nothing(file, out, *, progress=None):
    return summary(file, out)


def counts_wrongly(file, out, *, progress=None):
    return export(file, out, progress=progress) | {"bytes": 12}


def leaves_out_what_is_not_there(file, out, *, progress=None):
    return export(file, out, progress=progress) | {"skipped": ["no.such.weight"]}


def writes_a_log(file, out, *, progress=None):
    out.with_name("export.log").write_text("done")
    return export(file, out, progress=progress)


def prints_while_exporting(file, out, *, progress=None):
    print("exporting")
    return export(file, out, progress=progress)


def stamps_the_time(file, out, *, progress=None):
    write_all(file, out, progress, datetime.datetime.now().isoformat().encode())
    return summary(file, out)


def hashes_strings(file, out, *, progress=None):
    write_all(file, out, progress, str(hash("a salt")).encode())
    return summary(file, out)


def never_reports(file, out, *, progress=None):
    return export(file, out)


def reports_shares(file, out, *, progress=None):
    summary = export(file, out)
    for _ in range(10):
        if progress is not None:
            progress.advance(0.1)
    return summary


def reports_text(file, out, *, progress=None):
    if progress is not None:
        progress.advance("half")
    return export(file, out)


def writes_in_place(file, out, *, progress=None):
    write_all(file, out, progress)
    return summary(file, out)


def removes_first(file, out, *, progress=None):
    out.unlink(missing_ok=True)
    return export(file, out, progress=progress)


def leaves_a_part_on_ctrl_c(file, out, *, progress=None):
    part = out.with_name(f".{out.name}.part")
    try:
        write_all(file, part, progress)
    except Exception:
        part.unlink()
        raise
    part.replace(out)
    return summary(file, out)


def goes_on(file, out, *, progress=None):
    try:
        return export(file, out, progress=progress)
    except OSError:
        return summary(file, out)


# Commands.


@click.command()
@click.option("--loud", is_flag=True)
def command(loud):
    """Say hello."""
    click.echo("HELLO" if loud else "hello")


@click.command()
def says_something_else():
    """Say goodbye."""


@click.command(add_help_option=False)
def has_no_help():
    """Say hello."""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("rest", nargs=-1, type=click.UNPROCESSED)
def takes_anything(rest):
    """Say hello."""


class Lazy(click.Command):
    def get_help(self, ctx):
        import numpy  # noqa: F401

        return super().get_help(ctx)


@click.command(cls=Lazy)
def helps_with_numpy():
    """Say hello."""


def no_command():
    """Say hello."""
