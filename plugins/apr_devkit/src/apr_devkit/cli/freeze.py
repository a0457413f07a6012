"""`apr plugins freeze`: requirement lines for pip that install the same plugins elsewhere."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import click

from apr_core.runtime import get_registry, installed, print_json

CORE = "apr-core"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def freeze(as_json: bool) -> None:
    """Print requirement lines of the plugins, also disabled ones, and of apr-core.

    `pip install -r` reads these lines. What was installed from a folder, file or repository is
    named by its address, as pip itself does.
    """
    get_registry()  # a wrong configuration file stops every command
    frozen = [_frozen(name) for name in sorted({CORE, *(f.distribution for f in installed())})]
    if as_json:
        print_json(frozen)
        return
    for each in frozen:
        click.echo(each["requirement"])


def _frozen(name: str) -> dict[str, Any]:
    try:
        package = distribution(name)
        return {"name": name, "version": package.version} | _requirement(name, package)
    except (PackageNotFoundError, KeyError, ValueError, OSError) as error:
        problem = f"{type(error).__name__}: {error}"
        line = f"# {name}: half installed ({problem})"
        return {"name": name, "version": "", "requirement": line, "editable": False}


def _requirement(name: str, package: Distribution) -> dict[str, Any]:
    """Return the line, and whether the package is editable. Raises ValueError, KeyError."""
    text = package.read_text("direct_url.json")
    if text is None:
        return {"requirement": f"{name}=={package.version}", "editable": False}
    origin = json.loads(text)
    if origin.get("dir_info", {}).get("editable"):
        path = url2pathname(urlsplit(origin["url"]).path)
        line = f"-e {shlex.quote(path)}  # {name}=={package.version}"
        return {"requirement": line, "editable": True}
    return {"requirement": f"{name} @ {direct_reference(origin)}", "editable": False}


def direct_reference(origin: dict[str, Any]) -> str:
    """Return the URL for a requirement, from the content of a direct_url.json (PEP 610)."""
    url: str = origin["url"]
    fragments = []
    if "vcs_info" in origin:
        url = f"{origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
    hashes = origin.get("archive_info", {}).get("hashes") or {}
    if "sha256" in hashes:
        fragments.append(f"sha256={hashes['sha256']}")
    if origin.get("subdirectory"):
        fragments.append(f"subdirectory={origin['subdirectory']}")
    return url + ("#" + "&".join(fragments) if fragments else "")
