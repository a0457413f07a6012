"""Imports a checkpoint: checks everything that can be wrong, then streams tensors into the file."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

from apr_core.family.modelspec import FamilyPlugin
from apr_core.format.writer import AprWriter, TensorSpec, check_target
from apr_core.importing.choosing import SOURCE, FormatChooser, fallback_rows
from apr_core.importing.encoding import Encoder, InputsOf, Progress
from apr_core.importing.metadata import ImportSummary, build_metadata, role_rows, skipped_rows
from apr_core.importing.source import CheckpointSource
from apr_core.registry import Registry
from apr_core.text.tokenizer_files import read_json, tokenizer_metadata

NO_CONFIG = "A checkpoint has config.json beside its weights."
MAX_THREADS = 8  # each holds a few blocks of 4 MiB; reading is the limit sooner


class ImportPlan:
    """A checked import: what is read fits the family's contract; only values and time can fail it.

    `recipe` None keeps the checkpoint's precision; `arch` None detects the family from config.json.
    Raises NotFound, FormatError, ContractError or PluginError.
    """

    def __init__(
        self, source: CheckpointSource, *, recipe: str | None, arch: str | None, registry: Registry
    ) -> None:
        self.source, self.recipe = source, recipe or SOURCE
        directory = source.directory
        self.hf_config = hf = read_json(directory / "config.json", NO_CONFIG)
        if arch is not None:
            owned = registry.get("family", arch)
        else:
            owned = registry.family_for(hf.get("architectures"), hf.get("model_type"))
        self.family: FamilyPlugin = registry.make("family", owned.qualified)
        self.family_distribution = owned.distribution
        defaults = directory / "generation_config.json"
        self.generation = read_json(defaults) if defaults.exists() else None
        self.config = config = self.family.config(hf, self.generation)
        self.contract = self.family.contract()
        chooser = FormatChooser(self.recipe, config.num_layers, registry)
        self.checkpoint = self.family.checkpoint(config, source.open())
        shapes = {name: tensor.shape for name, tensor in self.checkpoint.tensors.items()}
        self.resolution = self.contract.check(config, shapes)
        self.assignments = chooser.choose(self.resolution, self.checkpoint)
        self.tokenizer = tokenizer_metadata(
            directory, config.vocab_size, self.contract.pre_type, config.stop_ids
        )

    @property
    def source_bytes(self) -> int:
        """Bytes that will be read from the source."""
        return sum(a.source.nbytes for a in self.assignments)


plan_import = ImportPlan


def write_import(
    plan: ImportPlan,
    out: Path,
    *,
    force: bool = False,
    shard_bytes: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    inputs_of: InputsOf | None = None,
) -> ImportSummary:
    """Write the file, or shards of about `shard_bytes` at most, and return a summary.

    `progress` is called with a tensor's name and the source bytes done; `inputs_of` says what a
    matrix is multiplied with. Raises UsageError (the target exists), NotFound, QuantizationError or
    InputOutputError; then, and when interrupted, the target is as it was before.
    """
    began = time.monotonic()
    check_target(out, force)
    specs = [TensorSpec(a.rule.name, a.spec, a.rule.shape) for a in plan.assignments]
    metadata = build_metadata(plan)
    writer = AprWriter(out, metadata, specs, shard_bytes=shard_bytes, force=force)
    by_name = {a.rule.name: a for a in plan.assignments}
    workers = threads or min(os.cpu_count() or 1, MAX_THREADS)
    with writer, ThreadPoolExecutor(workers, "encode") as pool:
        encoder = Encoder(plan.checkpoint, pool, workers, progress, inputs_of)
        for name in writer.names:
            writer.add(name, encoder.chunks(by_name[name]))
    roles = role_rows(plan.assignments, encoder.tallies)
    parameters = sum(prod(a.rule.shape) for a in plan.assignments)
    sizes = {name: t.nbytes for name, t in plan.checkpoint.tensors.items()}
    return ImportSummary(
        paths=tuple(writer.paths),
        source=plan.source.origin,
        family=plan.config.family,
        variant=plan.contract.variant_of(plan.config),
        layout=plan.resolution.layout,
        recipe=plan.recipe,
        parameters=parameters,
        source_bytes=plan.source_bytes,
        file_bytes=sum(path.stat().st_size for path in writer.paths),
        bits_per_weight=8 * sum(r.nbytes for r in roles) / parameters,
        roles=roles,
        fallbacks=fallback_rows(plan.assignments),
        skipped=skipped_rows(plan.resolution, sizes),
        carried=sum(a.rule.group != "model" for a in plan.assignments),
        absent=plan.resolution.absent,
        notes=plan.checkpoint.notes,
        seconds=time.monotonic() - began,
    )
