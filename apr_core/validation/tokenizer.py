"""Checks the tokenizer inside a file: its lists, its ids, and that it can be rebuilt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from apr_core.errors import AprError
from apr_core.family.modelspec import ModelConfig
from apr_core.validation.report import Report

PROBE = "Hello, world! 1 + 2 = 3\n  Grüße, 你好 \N{SLIGHTLY SMILING FACE}"
ID_KEYS = ("bos_token_id", "eos_token_id", "padding_token_id")


def check_tokenizer(report: Report, metadata: Mapping[str, Any], rows: int | None) -> None:
    """Add the tokenizer's checks. `rows` of the embedding is None if unknown."""
    vocabulary = metadata.get("tokenizer.vocabulary")
    if vocabulary is None:
        report.failed("tokenizer-vocabulary", "the file has no tokenizer.vocabulary")
        for name in ("tokenizer-ids", "tokenizer-merges", "tokenizer-loads"):
            report.not_run(name, "the file has no tokenizer.vocabulary")
        return
    problems = _vocabulary(metadata, vocabulary)
    if not isinstance(vocabulary, list) or not all(isinstance(t, str) for t in vocabulary):
        vocabulary = []
    report.judge("tokenizer-vocabulary", problems, f"{len(vocabulary)} tokens, dense")
    if rows is None:
        report.not_run("tokenizer-ids", "the number of embedding rows is not known")
    else:
        problems = _beyond(metadata, vocabulary, rows)
        report.judge("tokenizer-ids", problems, f"all ids are below {rows}")
    _check_merges(report, metadata.get("tokenizer.merges"), vocabulary)
    _check_loads(report, metadata, rows)


def _vocabulary(metadata: Mapping[str, Any], vocabulary: Any) -> list[str]:
    if not isinstance(vocabulary, list) or not vocabulary:
        return ["tokenizer.vocabulary is not a list of tokens"]
    odd = [i for i, token in enumerate(vocabulary) if not isinstance(token, str)]
    problems = [f"id {i} is {vocabulary[i]!r}, expected a string" for i in odd]
    if not odd:
        twice = [t for t, times in Counter(vocabulary).items() if times > 1]
        problems += [f"token {token!r} is listed more than once" for token in twice]
    size = metadata.get("tokenizer.vocab_size", len(vocabulary))
    if size != len(vocabulary):
        problems.append(f"tokenizer.vocab_size is {size!r}, the list has {len(vocabulary)}")
    return problems


def _beyond(metadata: Mapping[str, Any], vocabulary: list[str], rows: int) -> list[str]:
    problems = []
    if len(vocabulary) > rows:
        problems.append(f"{len(vocabulary)} tokens, but the embedding has {rows} rows")
    for key in ID_KEYS:
        value = metadata.get(f"tokenizer.{key}", 0)
        if value is not None and not _is_id(value, rows):
            problems.append(f"tokenizer.{key} is {value!r}, expected an id below {rows}")
    return problems


def _is_id(value: Any, rows: int) -> bool:
    return type(value) is int and 0 <= value < rows


def _check_merges(report: Report, merges: Any, vocabulary: list[str]) -> None:
    if merges is None or not vocabulary:
        why = "no vocabulary to compare with" if merges is not None else "no tokenizer.merges"
        report.not_run("tokenizer-merges", why)
        return
    if not isinstance(merges, list):
        report.failed("tokenizer-merges", "tokenizer.merges is not a list")
        return
    tokens = set(vocabulary)
    problems = [f"merge {i} {p}" for i, m in enumerate(merges) if (p := _bad_merge(m, tokens))]
    report.judge("tokenizer-merges", problems, f"{len(merges)} merges make tokens")


def _bad_merge(merge: Any, tokens: set[str]) -> str:
    if not isinstance(merge, str) or " " not in merge:
        return f"is {merge!r}, expected 'left right'"
    left, right = merge.split(" ", 1)
    return "" if left + right in tokens else f"makes {left + right!r}, which is no token"


def _check_loads(report: Report, metadata: Mapping[str, Any], rows: int | None) -> None:
    """Rebuild the tokenizer, and encode and decode a line of text with it."""
    from apr_core.text.tokenizer import Tokenizer

    try:
        tokenizer = Tokenizer.from_metadata(metadata)
        ids = tokenizer.encode(PROBE)
        text = tokenizer.decode(ids)
    except Exception as error:  # hostile metadata: whatever goes wrong, it does not load
        why = error.message if isinstance(error, AprError) else f"{type(error).__name__}: {error}"
        report.failed("tokenizer-loads", why)
        return
    problems = [f"id {i} is beyond the embedding" for i in ids if rows is not None and i >= rows]
    # Normalizers may change text, so it need not come back equal, only not empty.
    if not ids or not text.strip():
        problems.append("it encodes a line of text to nothing")
    report.judge("tokenizer-loads", problems, f"{len(PROBE)} characters are {len(ids)} tokens")


def check_stop_ids(report: Report, metadata: Mapping[str, Any], config: ModelConfig) -> None:
    """Check that generation can end: the model's and the tokenizer's stop ids are valid."""
    listed = metadata.get("apr.stop_ids") or []
    if not isinstance(listed, list):
        report.failed("stop-ids", "apr.stop_ids is not a list")
        return
    ids = [*config.stop_ids, *listed]
    problems = [
        f"stop id {i!r} is no id below {config.vocab_size}"
        for i in ids
        if not _is_id(i, config.vocab_size)
    ]
    if not config.stop_ids and not listed:
        problems.append("no stop id: answers would never end")
    report.judge("stop-ids", problems, ", ".join(dict.fromkeys(map(str, ids))))
