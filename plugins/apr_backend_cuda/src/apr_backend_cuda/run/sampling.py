"""The next tokens, sampled on the device: only they are downloaded, not the logits.

Rows are sorted by what their sampling needs; each kind takes a few launches for all of its rows.
Parameters go up in one small copy; the download of the tokens is the only wait. Left to the host:
rows that are not finite, top-k beyond LONGEST, and a nucleus of more than LONGEST.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import torch
import triton

from apr_backend_cuda.kernels import draws as kernels
from apr_backend_cuda.launching.shapes import SHAPES

if TYPE_CHECKING:
    from apr_core.plugin import SamplingMetadata

BLOCK = 1024  # ids per program; sampling from all ids uses the same blocks as the host
LONGEST, SHORTEST = 1024, 64  # lists of the likeliest tokens: a power of two in this range
CAPACITY = 4 * LONGEST  # scores of a row that may have to be sorted for its list
COLUMNS = 8 * LONGEST  # of the table that a row is folded into to find these
COLDEST = 1e-37  # the lowest temperature float32 divides by, as on the host
LARGEST = float(torch.finfo(torch.float32).max)


class Kind(IntEnum):
    """What sampling needs of a row."""

    LIKELIEST = 0
    ALL = 1  # weights of all ids, in their order
    NUCLEUS = 2  # a list of the likeliest, and the weight of all
    LISTED = 3  # a list of the likeliest
    HOST = 4


def sample(logits: torch.Tensor, sampling: Sequence[SamplingMetadata | None]) -> list[int | None]:
    """Return a token drawn from each row of f32 [rows, vocab]; None as in `BackendPlugin`."""
    vocab = logits.shape[1]
    kinds = [Kind.HOST if metadata is None else kind_of(metadata, vocab) for metadata in sampling]
    order = [row for row, kind in enumerate(kinds) if kind is not Kind.HOST]
    order.sort(key=kinds.__getitem__)
    choices: list[int | None] = [None] * len(sampling)
    if order:
        lines = [
            _line(row, metadata, vocab) for row in order if (metadata := sampling[row]) is not None
        ]
        tokens = _tokens(logits, lines, [kinds[row] for row in order])
        for row, token in zip(order, tokens, strict=True):
            choices[row] = token if token >= 0 else None
    return choices


def kind_of(metadata: SamplingMetadata, vocab: int) -> Kind:
    """Return what sampling needs of a row of `vocab` scores."""
    if metadata.temperature <= 0:
        return Kind.LIKELIEST
    if 0 < metadata.top_k < min(metadata.valid, vocab):
        return Kind.LISTED if metadata.top_k <= LONGEST else Kind.HOST
    return Kind.NUCLEUS if metadata.top_p < 1.0 else Kind.ALL


def _line(row: int, metadata: SamplingMetadata, vocab: int) -> tuple[float, ...]:
    """Return the parameters of a row, in the order of `PARAMS`."""
    valid, temperature = min(metadata.valid, vocab), max(metadata.temperature, COLDEST)
    return (
        row,
        valid,
        temperature,
        metadata.top_k,
        metadata.top_p,
        metadata.min_p,
        metadata.uniform,
        0.0,
    )


def _tokens(logits: torch.Tensor, lines: list[tuple[float, ...]], kinds: list[Kind]) -> list[int]:
    rows = Rows.of(logits, lines)
    rows.take_likeliest()
    for kind, take in ((Kind.ALL, rows.draw_from_all), (Kind.NUCLEUS, rows.draw_from_nucleus)):
        if count := kinds.count(kind):
            take(kinds.index(kind), count)
    if count := kinds.count(Kind.LISTED):
        first = kinds.index(Kind.LISTED)
        rows.draw_from_list(first, count, int(max(line[3] for line in lines[first:])))
    tokens: list[int] = rows.tokens.tolist()
    return tokens


@dataclass(frozen=True, slots=True)
class Rows:
    """Logits and the n tokens drawn from them, each from the row that its line of params names."""

    logits: torch.Tensor  # f32 [rows, vocab]
    params: torch.Tensor  # f64 [n, 8]
    tops: torch.Tensor  # f32 [n], the highest score of each
    tokens: torch.Tensor  # i32 [n]

    @classmethod
    def of(cls, logits: torch.Tensor, lines: list[tuple[float, ...]]) -> Rows:
        """Make the rows, with no tokens drawn yet."""
        logits = logits if logits.stride(1) == 1 else logits.contiguous()
        params = torch.tensor(lines, dtype=torch.float64).to(logits.device, non_blocking=True)
        tops = torch.empty(len(lines), dtype=torch.float32, device=logits.device)
        return cls(logits, params, tops, torch.empty_like(tops, dtype=torch.int32))

    @property
    def blocks(self) -> int:
        """How many blocks of ids a row has."""
        blocks: int = triton.cdiv(self.logits.shape[1], BLOCK)
        return blocks

    def _new(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.logits.device)

    def take_likeliest(self) -> None:
        """Find the likeliest token of every row, and its score; -1 if it is not finite."""
        count, lines, blocks = len(self.tokens), SHAPES.draws, self.blocks
        best = self._new(count, blocks, dtype=torch.float32)
        at = self._new(count, blocks, dtype=torch.int32)
        kernels.best_of_blocks[blocks, triton.cdiv(count, lines)](
            self.logits,
            self.params,
            best,
            at,
            count,
            self.logits.stride(0),
            blocks,
            ROWS=lines,
            BLOCK=BLOCK,
        )
        kernels.best_of_rows[(triton.cdiv(count, lines),)](
            best,
            at,
            self.tops,
            self.tokens,
            count,
            blocks,
            ROWS=lines,
            BLOCKS=triton.next_power_of_2(blocks),
        )

    def _sums(self, first: int, count: int, least: bool) -> torch.Tensor:
        """Return weights of blocks of ids, f64 [count, blocks]; `least`: after min-p."""
        sums = self._new(count, self.blocks, dtype=torch.float64)
        kernels.sums_of_blocks[self.blocks, triton.cdiv(count, SHAPES.draws)](
            self.logits,
            self.params,
            self.tops,
            sums,
            count,
            first,
            self.logits.stride(0),
            self.blocks,
            LEAST=least,
            ROWS=SHAPES.draws,
            BLOCK=BLOCK,
        )
        return sums

    def draw_from_all(self, first: int, count: int) -> None:
        """Sample tokens by the weights of all ids, in their order."""
        sums = self._sums(first, count, True)
        kernels.draw_from_all[(triton.cdiv(count, SHAPES.draws),)](
            self.logits,
            self.params,
            self.tops,
            sums,
            self.tokens,
            count,
            first,
            self.logits.stride(0),
            self.blocks,
            ROWS=SHAPES.draws,
            BLOCKS=triton.next_power_of_2(self.blocks),
            BLOCK=BLOCK,
        )

    def draw_from_nucleus(self, first: int, count: int) -> None:
        """Sample tokens from the likeliest that hold top-p of the total weight."""
        self._draw_from(first, count, LONGEST, self._sums(first, count, False))

    def draw_from_list(self, first: int, count: int, most: int) -> None:
        """Sample tokens from the likeliest `most`, or fewer."""
        length = max(SHORTEST, triton.next_power_of_2(most))
        self._draw_from(first, count, min(length, LONGEST), None)

    def _draw_from(self, first: int, count: int, length: int, sums: torch.Tensor | None) -> None:
        bounds = self._bounds(first, count, length)
        counts = torch.zeros(count, dtype=torch.int32, device=self.logits.device)
        keys = self._new(count, CAPACITY, dtype=torch.int64).fill_(kernels.EMPTY.value)
        kernels.list_scores[self.blocks, count](
            self.logits,
            self.params,
            bounds,
            counts,
            keys,
            first,
            self.logits.stride(0),
            CAPACITY=CAPACITY,
            BLOCK=BLOCK,
        )
        listed = torch.topk(keys, length, dim=1).values  # [count, length]: no two are equal
        kernels.draw_from_list[(triton.cdiv(count, SHAPES.draws),)](
            self.params,
            self.tops,
            self.tops if sums is None else sums,
            counts,
            listed,
            self.tokens,
            count,
            first,
            self.blocks,
            CAPACITY=CAPACITY,
            NUCLEUS=sums is not None,
            ROWS=SHAPES.draws,
            BLOCKS=triton.next_power_of_2(self.blocks),
            K=length,
        )

    def _bounds(self, first: int, count: int, length: int) -> torch.Tensor:
        """Return a score per row, f32 [count], that at least `length` scores reach if finite.

        It is the length-th highest of the columns' highest scores, or the lowest float.
        """
        vocab = self.logits.shape[1]
        if vocab <= CAPACITY:
            return self._new(count, dtype=torch.float32).fill_(-LARGEST)
        best = self._new(count, COLUMNS, dtype=torch.float32)
        width = min(SHAPES.folded, COLUMNS)
        kernels.best_of_columns[COLUMNS // width, triton.cdiv(count, SHAPES.draws)](
            self.logits,
            self.params,
            best,
            count,
            first,
            self.logits.stride(0),
            COLUMNS,
            triton.cdiv(vocab, COLUMNS),
            ROWS=SHAPES.draws,
            N=width,
        )
        highest = torch.topk(best, length, dim=1, sorted=False).values
        return highest.amin(dim=1).clamp_(min=-LARGEST)
