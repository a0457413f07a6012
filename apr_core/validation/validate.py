"""Runs all checks of a file in order, reading each tensor once. Prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

from apr_core.errors import AprError, ContractError, PluginError
from apr_core.family.contract import Contract, Resolution
from apr_core.family.modelspec import ModelConfig
from apr_core.format import AprFile, TensorEntry
from apr_core.registry import Registry
from apr_core.validation.quality import Comparison, open_source
from apr_core.validation.report import Report
from apr_core.validation.tokenizer import check_stop_ids, check_tokenizer
from apr_core.validation.values import TensorReader, TensorStats, implausible

Advance = Callable[[int], None]


@dataclass(slots=True)
class _Model:
    """The family's view of the file, as far as it could be found out."""

    reason: str = ""  # why the rest is missing
    contract: Contract | None = None
    config: ModelConfig | None = None
    resolution: Resolution | None = None


@dataclass(slots=True)
class _Values:
    """Results of the pass over all tensors."""

    stats: dict[str, TensorStats] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)  # tensor -> why


def work_bytes(file: AprFile) -> int:
    """Return the total that `advance` reaches: every byte for the CRC, then the tensors."""
    return file.size + sum(entry.nbytes for entry in file.tensors.values())


def check_file(
    file: AprFile,
    registry: Registry,
    *,
    quality: bool = False,
    source: str | None = None,
    advance: Advance = lambda done: None,
) -> Report:
    """Check an open file. The checks and the score are described in docs/reference/validation.md.

    Nothing in a file makes this raise; it becomes a failed check. Raises UsageError or NotFound
    if `source`, typed by a user, is not the file's source.
    """
    comparison, why = None, ""
    if quality:
        checkpoint, why = open_source(file, source, registry)
        comparison = Comparison(checkpoint) if checkpoint else None
    report = Report(str(file.path), tensors=[] if quality else None)
    check_structure(report, file, advance)
    model = check_contract(report, file, registry)
    values = read_values(file, TensorReader(file, registry), comparison, advance)
    check_values(report, file, model, values)
    rows = model.config.vocab_size if model.config else None
    check_tokenizer(report, file.metadata, rows)
    if model.config:
        check_stop_ids(report, file.metadata, model.config)
    else:
        report.not_run("stop-ids", model.reason)
    if quality:
        check_quality(report, comparison, why, values)
    return report


def check_structure(report: Report, file: AprFile, advance: Advance) -> None:
    """Check what needs every byte; opening has checked the layout already."""
    count, files = len(file.tensors), len(file.paths)
    report.passed("structure", f"{count} tensors in {files} file{'s' if files > 1 else ''}")
    report.passed("header-checksum", "matches")
    wrong = [
        f"{path.name}: stored {stored:#010x}, computed {computed:#010x}"
        for path, (stored, computed) in file.footer_crcs(advance).items()
        if stored != computed
    ]
    report.judge("footer-checksum", wrong, "matches every byte before it")
    report.judge("padding", file.padding_errors(), "all zero")


def check_contract(report: Report, file: AprFile, registry: Registry) -> _Model:
    """Compare names and shapes with the family's contract, if the family is installed."""
    name = file.metadata.get("apr.family") or file.metadata.get("architecture")
    hf = file.metadata.get("hf_config")
    model = _Model()
    if not isinstance(name, str) or not isinstance(hf, dict):
        missing = "architecture" if not isinstance(name, str) else "hf_config"
        model.reason = f"the metadata has no `{missing}`"
        report.failed("contract", model.reason)
        return model
    try:
        family = registry.make("family", name)
        model.contract = family.contract()
        defaults = file.metadata.get("apr.generation_config")
        model.config = family.config(hf, defaults if isinstance(defaults, dict) else None)
        shapes = {name: entry.shape for name, entry in file.tensors.items()}
        model.resolution = model.contract.check(model.config, shapes)
    except PluginError as error:
        model.reason = ". ".join([error.message, *error.hint.splitlines()[:1]]).removesuffix(".")
        report.not_run("contract", model.reason)
    except ContractError as error:
        model.reason = "the contract is not met"
        report.failed("contract", error.message)
    except Exception as error:  # a plugin that fails on a hostile hf_config
        model.reason = f"family {name!r} cannot read hf_config: {type(error).__name__}: {error}"
        report.failed("contract", model.reason)
    else:
        used = f"{model.contract.family}/{model.contract.version}"
        report.passed("contract", f"{used}, {len(model.resolution.rules)} tensors")
    return model


def read_values(
    file: AprFile, reader: TensorReader, comparison: Comparison | None, advance: Advance
) -> _Values:
    """Decode every tensor once, for its statistics and for the comparison with the source."""
    values = _Values()
    for name, entry in file.tensors.items():
        why = reader.why_not(entry)
        if why is None:
            try:
                values.stats[name] = _read(reader, entry, comparison, advance)
            except AprError as error:
                why = error.message
        if why is not None:
            values.unreadable[name] = why
            advance(entry.nbytes)
    return values


def _read(
    reader: TensorReader, entry: TensorEntry, comparison: Comparison | None, advance: Advance
) -> TensorStats:
    stats, count, reported = TensorStats(), max(1, prod(entry.shape)), 0
    source = comparison if comparison and comparison.has(entry) else None
    error = signal = 0.0
    numbered = reader.rows(entry) if source else ((0, p) for p in reader.pieces(entry))
    for start, piece in numbered:
        stats.add(piece)
        if source:
            squares = source.squares(entry, start, piece)
            error, signal = error + squares[0], signal + squares[1]
        done = entry.nbytes * stats.count // count
        advance(done - reported)
        reported = done
    if source:
        source.add(entry, error, signal)
    return stats


def check_values(report: Report, file: AprFile, model: _Model, values: _Values) -> None:
    """Check that values are finite and look like weights."""
    wrong = [
        f"{name}: {s.nan} NaN, {s.inf} infinite of {s.count}"
        for name, s in values.stats.items()
        if s.nan or s.inf
    ]
    unread = ""
    if values.unreadable:
        first = next(iter(values.unreadable.values()))
        count = f"{len(values.unreadable)} of {len(file.tensors)}"
        unread = f"{count} tensors cannot be decoded: {first}"
    report.judge("values-finite", wrong, f"{len(values.stats)} tensors decoded", unread)
    if model.resolution is None or model.contract is None:
        report.not_run("values-plausible", model.reason)
        return
    rules = model.resolution.rules
    known = {n: (rules[n], s) for n, s in values.stats.items() if n in rules}
    odd = implausible(model.contract, known)
    report.judge("values-plausible", odd, f"{len(known)} tensors look like weights", unread)


def check_quality(report: Report, comparison: Comparison | None, why: str, values: _Values) -> None:
    """Check the error of each tensor that the source has."""
    if comparison is None:
        report.not_run("quantization-error", why)
        return
    report.tensors, report.overall_error = comparison.errors, comparison.overall
    problems = comparison.misshapen + [
        f"{t.name} ({t.format}) lost {t.relative_rmse:.3g}, at most {t.limit:.3g}"
        for t in comparison.errors
        if t.relative_rmse > t.limit
    ]
    unseen = "" if comparison.errors else "the source has none of the tensors"
    unseen = next(iter(values.unreadable.values()), unseen)
    apart = f", {len(comparison.missing)} not in the source" if comparison.missing else ""
    detail = f"relative RMSE {report.overall_error or 0:.4f} over {len(comparison.errors)} tensors"
    report.judge("quantization-error", problems, detail + apart, unseen)
