"""`apr pull`: a checkpoint from a model hub."""

from __future__ import annotations

import click

from apr_core.runtime import download_progress, human_bytes, print_json


@click.command()
@click.argument("model")
@click.option("--force", is_flag=True, help="Download again what is already there.")
@click.option("--offline", is_flag=True, help="Use only what is already there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, force: bool, offline: bool, as_json: bool) -> None:
    """Download a checkpoint from a model hub. MODEL is hf://ORG/NAME or hf://ORG/NAME@REVISION.

    Only the files a text model needs; a download that was cut off is continued, and every file is
    checked against the hub's hash. HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are honoured.
    """
    from apr_core.runtime import get_registry
    from apr_hub.ids import parse_id
    from apr_hub.pulling import pull

    registry, id_ = get_registry(), parse_id(model)
    with download_progress() as progress:
        pulled = pull(model, offline=offline, force=force, progress=progress)
    if as_json:
        print_json({"model": str(id_), "path": str(pulled.path), "commit": pulled.commit,
                    "files": pulled.files})  # fmt: skip
        return
    name = id_.repo.rpartition("/")[2]
    click.echo(f"{id_} at {pulled.commit[:12]}, {human_bytes(sum(pulled.files.values()))}:")
    for file, size in pulled.files.items():
        click.echo(f"  {file}  {human_bytes(size)}")
    click.echo(f"in {pulled.path}")
    recipe = registry.recommended_recipe()
    options = f"--quantize {recipe} -o {name}-{recipe}.apr" if recipe else f"-o {name}.apr"
    click.echo(f"next: apr import {id_} {options}")
