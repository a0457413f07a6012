"""A loaded model: logits, and the ragged forward that generation and serving build on."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import BackendError, UsageError
from apr_core.family.modelspec import ModelConfig
from apr_core.format import AprFile
from apr_core.generate.boundaries import CHUNK, GRID
from apr_core.model.decoder import Decoder
from apr_core.model.loading import Progress, build_decoder, family_config, make_backend
from apr_core.model.state import KVType, State, sequence_bytes, state_makers
from apr_core.model.step import LastLogits, Step, make_step
from apr_core.ops.binding import BackendPlugin, BindReport, BoundOps, StepFunction, Weight
from apr_core.registry import Registry, get_registry

if TYPE_CHECKING:
    from apr_core.generate.deltas import Delta
    from apr_core.generate.generate import Generation, StreamOptions
    from apr_core.text.tokenizer import Tokenizer

Parts = Sequence[tuple[int, Sequence[int]]]  # (slot, next token ids)
Snapshot = tuple[int, list[Any]]  # tokens, and each layer's snapshot


class Model:
    """A model on a backend. Make one with `load`.

    `config` holds its numbers, `tokenizer` its tokenizer, `report` its bindings,
    `metadata` the file's metadata. Sequences live in slots; a slot is a number.
    """

    def __init__(
        self,
        file: AprFile,
        config: ModelConfig,
        decoder: Decoder,
        backend: BackendPlugin,
        report: BindReport,
        max_len: int,
        kv_type: KVType = "f32",
        reasoning: Sequence[str] = (),
    ) -> None:
        self.file, self.config, self.report, self.max_len = file, config, report, max_len
        self.metadata: dict[str, Any] = file.metadata
        self.backend, self.kv_type, self._reasoning = backend, kv_type, reasoning
        self._decoder = decoder
        self._states: list[State] = self._new_states()
        self._lengths: dict[int, int] = {}
        self._captured: StepFunction = self._last_logits
        if not report.unrecorded:
            self._captured = backend.capture(self._last_logits, report.note)
        self.captures = True  # False: ops are called one by one, for inspection

    def __repr__(self) -> str:
        arch = self.metadata.get("architecture", "model")
        where = f"{self.backend.name}, {self.max_len} tokens"
        return f"<Model {str(self.file.path)!r}: {arch} on {where}>"

    def _new_states(self) -> list[State]:
        makers = state_makers(self.backend, self.kv_type, self.max_len)
        states = [layer.mixer.new_state(makers) for layer in self._decoder.layers]
        coarse = [state.grid for state in states if GRID % state.grid]
        if coarse:
            raise BackendError(
                f"a state folds in {coarse[0]} tokens at once, and prompts are cut at multiples of "
                f"{GRID}: answers would depend on where",
                f"Its mixer needs a grid that divides {GRID}: tell the plugin's author.",
            )
        return states

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer inside the file, made on first use."""
        from apr_core.text.tokenizer import Tokenizer

        return Tokenizer.from_metadata(self.metadata, self._reasoning)

    @property
    def ops(self) -> BoundOps:
        """The bound ops, one attribute each."""
        return self._decoder.ops

    def matrices(self) -> list[Weight]:
        """Return every matrix that a step multiplies with: those of the layers, and the head."""
        weights = [w for layer in self._decoder.layers for w in vars(layer.weights).values()]
        return [w for w in [*weights, self._decoder.head] if isinstance(w, Weight)]

    def bytes_read(self, rows: int) -> int:
        """Return the bytes of matrices that a step of so many rows reads, on average."""
        head: int = self._decoder.head.data.nbytes
        return round(head + sum(layer.bytes_read(rows) for layer in self._decoder.layers))

    def new_slot(self) -> int:
        """Open a slot for a new sequence."""
        slot = next(i for i in range(len(self._lengths) + 1) if i not in self._lengths)
        with ExitStack() as undo:
            for state in self._states:
                state.open(slot)
                undo.callback(state.close, slot)
            undo.pop_all()
        self._lengths[slot] = 0
        return slot

    def free_slot(self, slot: int) -> None:
        """Drop the slot's sequence and free its memory."""
        del self._lengths[slot]
        for state in self._states:
            state.close(slot)

    def length(self, slot: int) -> int:
        """Return the number of tokens the slot's sequence has so far."""
        return self._lengths[slot]

    def snapshot(self, slot: int, since: int = 0) -> Snapshot:
        """Return a copy of the slot's state, to be restored into any slot.

        Rows of keys and values before position `since` are left out where a state knows how: a
        snapshot taken there holds them.
        """
        length = self._lengths[slot]
        return length, [
            state.snapshot(slot, length, since)  # type: ignore[call-arg]
            if since and state.segments
            else state.snapshot(slot, length)
            for state in self._states
        ]

    def restore(self, slot: int, *snapshots: Snapshot) -> None:
        """Put a snapshot into an open slot, or a chain of them, each taken since the one before."""
        for _ in self.restore_slices(slot, *snapshots):
            pass

    def restore_slices(self, slot: int, *snapshots: Snapshot) -> Iterator[None]:
        """Run as `restore`, pausing after each snapshot, so that other slots may advance."""
        start, (self._lengths[slot], whole) = 0, snapshots[-1]
        for length, parts in snapshots:
            for state, part in zip(self._states, parts, strict=True):
                if state.segments:
                    state.restore(slot, part, *[start] * (start > 0))
                elif parts is whole:
                    state.restore(slot, part)
            yield
            start = length

    @property
    def states_in_rows(self) -> list[bool]:
        """For each layer, True if a snapshot of its state may begin where another ends."""
        return [state.segments for state in self._states]

    def shortened(self, snapshot: Snapshot, since: int, length: int) -> Snapshot:
        """Return a snapshot taken since a position, as if there had been only `length` tokens.

        For models all of whose states are in rows.
        """
        _, parts = snapshot
        states = zip(self._states, parts, strict=True)
        return length, [state.shortened(part, length - since) for state, part in states]  # type: ignore[attr-defined]

    def sequence_bytes(self, length: int) -> int:
        """Return the bytes of state of a slot whose sequence has `length` tokens.

        Measured on an empty slot where a state does not say.
        """
        return sequence_bytes(self._states, length)

    def step_bytes(self) -> int:
        """Return an upper estimate of a forward's bytes beside weights and states."""
        from apr_core.model.planning import step_bytes, uploaded_shapes

        layers = map(uploaded_shapes, self._decoder.layers)
        return step_bytes(self.config.hidden_size, self.config.vocab_size, layers)

    def forward(self, parts: Parts, all_rows: bool = False) -> NDArray[np.float32]:
        """Run one ragged step over (slot, next token ids) parts, each slot at most once.

        Returns float32 logits [parts, vocab] of each part's last token, or [rows, vocab] of all
        tokens with `all_rows`. Raises UsageError on bad ids or when a slot would overflow.
        """
        if not all_rows:
            return self.forward_last(parts).download()
        ids, step = self._step(parts)
        hidden = self._decoder.hidden(ids, step, self._states)
        logits = self.backend.download(self._decoder.logits(hidden))
        self._advance(parts)
        return logits

    def forward_last(self, parts: Parts) -> LastLogits:
        """Run as `forward`, with logits left on the backend, where tokens may be chosen."""
        ids, step = self._step(parts)
        last = self._captured if self.captures else self._last_logits
        logits = LastLogits(self.backend, last(ids, step))
        self._advance(parts)
        return logits

    def forward_slices(
        self, parts: Parts, hidden: bool = False
    ) -> Generator[None, None, LastLogits | NDArray[np.float32]]:
        """Run `forward_last` in slices: the generator pauses twice per layer, and returns logits.

        Other slots may be opened, freed and advanced between slices, and it may be closed early;
        then its slots can no longer be used. With `hidden` it returns the last hidden states
        [rows, hidden] of all tokens, after the final norm, in place of logits.
        """
        ids, step = self._step(parts)
        rows = yield from self._decoder.slices(ids, step, self._states)
        result: LastLogits | NDArray[np.float32]
        if hidden:
            result = self.backend.download(rows)
        else:
            result = LastLogits(self.backend, self._logits_of_last(rows, step))
            result.wait()
        self._advance(parts)
        return result

    def logits_of(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits [R, vocab] of hidden states [R, hidden] that `forward_slices` returned."""
        return self.backend.download(self._decoder.logits(self.backend.upload(hidden)))

    def _step(self, parts: Parts) -> tuple[Any, Step]:
        """Return the ids [T] on the backend, and the step that maps rows to slots."""
        self._check(parts)
        step = make_step(
            [(slot, len(ids), self._lengths[slot]) for slot, ids in parts], self.backend.upload
        )
        ids = np.concatenate([np.asarray(ids, np.int64) for _, ids in parts])
        return self.backend.upload(ids), step

    def _advance(self, parts: Parts) -> None:
        for slot, new in parts:
            self._lengths[slot] += len(new)

    def _last_logits(self, ids: Any, step: Step) -> Any:
        """Return logits of every segment's last row; a backend may capture this."""
        return self._logits_of_last(self._decoder.hidden(ids, step, self._states), step)

    def _logits_of_last(self, hidden: Any, step: Step) -> Any:
        if len(step.segments) < step.n_rows:
            hidden = hidden[step.last_rows]
        return self._decoder.logits(hidden)

    def _check(self, parts: Parts) -> None:
        if not parts or any(len(ids) == 0 for _, ids in parts):
            raise UsageError("a forward needs at least one token per sequence")
        if len({slot for slot, _ in parts}) != len(parts):
            raise UsageError("a slot may appear once in a forward")
        for slot, ids in parts:
            self.check_ids(ids)
            if self._lengths[slot] + len(ids) > self.max_len:
                raise UsageError(
                    f"the sequence would have {self._lengths[slot] + len(ids)} tokens, the "
                    f"context holds {self.max_len}",
                    "Shorten the prompt, or load with a larger context if the model has it.",
                )

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raise UsageError for an id that is outside the vocabulary."""
        low, high = min(ids), max(ids)
        if low < 0 or high >= self.config.vocab_size:
            raise UsageError(
                f"token id {low if low < 0 else high} is outside the vocabulary of "
                f"{self.config.vocab_size}"
            )

    def logits(self, ids: Sequence[int], chunk: int = CHUNK) -> NDArray[np.float32]:
        """Return logits of every token of one sequence: ids [T] -> float32 [T, vocab]."""
        slot = self.new_slot()
        try:
            parts = [
                self.forward([(slot, ids[i : i + chunk])], all_rows=True)
                for i in range(0, len(ids), chunk)
            ]
        finally:
            self.free_slot(slot)
        if not parts:
            raise UsageError("logits of an empty sequence", "Give at least one token id.")
        return np.concatenate(parts)

    def stream(
        self, prompt: str | Sequence[int], **options: Unpack[StreamOptions]
    ) -> Generator[Delta, None, None]:
        """Complete a text, or token ids, piece by piece: see `apr_core.generate.generate.stream`.

        A string is completed as it is; `chat` asks a model that was trained to answer.
        """
        from apr_core.generate.generate import stream

        return stream(self, self._prompt_ids(prompt), **options)

    def generate(self, prompt: str | Sequence[int], **options: Unpack[StreamOptions]) -> Generation:
        """Generate as `stream` does, to the end, and return the whole answer."""
        from apr_core.generate.generate import generate

        return generate(self, self._prompt_ids(prompt), **options)

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        enable_thinking: bool | None = None,
        **options: Unpack[StreamOptions],
    ) -> Generation:
        """Answer chat messages, or one question. Raises UsageError as `chat_ids` does."""
        asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        return self.generate(self.chat_ids(asked, enable_thinking), **options)

    def chat_ids(
        self, messages: Sequence[Mapping[str, Any]], enable_thinking: bool | None = None
    ) -> list[int]:
        """Return the prompt ids for an answer to chat messages, by the model's own template.

        Raises UsageError if the model has no template or its template refuses the messages.
        """
        from apr_core.text.chat import ChatTemplate, encode_chat

        template = ChatTemplate(self.metadata.get("chat_template"))
        return encode_chat(self.tokenizer, template, messages, enable_thinking=enable_thinking)

    def _prompt_ids(self, prompt: str | Sequence[int]) -> Sequence[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt

    def state_bytes(self) -> int:
        """Return the bytes of KV, recurrent and conv state over all open slots."""
        return sum(state.nbytes() for state in self._states)

    def close(self) -> None:
        """Unmap the file. The model cannot be used afterwards."""
        self.file.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def load(
    path: str | os.PathLike[str],
    backend: str | None = None,
    threads: int | None = None,
    *,
    strict: bool = False,
    max_len: int | None = None,
    kv_type: KVType | None = None,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load an .apr file onto a backend, by default the one that fits this machine best.

    `backend` is a name, or a name and the number of a device: `name:1`.
    `threads` None means one per physical core. `strict` refuses (BackendError) when an op would run
    on its reference, weights had to be decoded or steps could not be recorded. `max_len` is the
    context in tokens, at most and by default the model's own. `kv_type` is the precision of cached
    keys and values: f32, f16 or q8; by default f16, or f32 where the embedding is. `progress` is
    called after each matrix with the bytes uploaded, and those of all. Raises NotFound,
    FormatError, ContractError, PluginError or BackendError, also where it would not fit the device.
    """
    registry, file = registry or get_registry(), AprFile.open(Path(path))
    try:
        named = backend or registry.best_backend()
        device = make_backend(registry, named, threads)
        name = registry.backend(named)[0].declaration.name  # as foreign kernels have it
        family_name = str(file.metadata.get("apr.family") or file.metadata.get("architecture"))
        family = registry.make("family", family_name)
        config = family_config(family, file)
        plan, contract = family.plan(config), family.contract()
        limit = min(max_len or config.max_position_embeddings, config.max_position_embeddings)
        decoder, binder, kv_type = build_decoder(
            file, contract, config, plan, registry, device, name, limit, kv_type, progress, strict
        )
    except BaseException:
        file.close()
        raise
    return Model(file, config, decoder, device, binder.report, limit, kv_type, contract.reasoning)
