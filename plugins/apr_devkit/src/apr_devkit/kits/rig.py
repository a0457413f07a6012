"""What kits of mixers and of models share: backends, an oracle, and checks of sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import AprError, Backend, Contract, ModelConfig, StepFunction
from apr_core.runtime import GRID, ReferenceBackend, Registry, make_backend
from apr_devkit.kits.checks import PluginConformance, skip
from apr_devkit.kits.measures import Floats, distance
from apr_devkit.tiny import text_layout

# `reference` has no kernels: what fails on it is the plugin, not a kernel
REFERENCE = f"{ReferenceBackend.__module__}:{ReferenceBackend.__name__}"
NAME, RECORDING = ReferenceBackend.name, "recording"
LENGTHS = (1, 2, 5, GRID - 1, GRID, GRID + 1, 2 * GRID + 2)  # prompts are cut on the grid
Piece = tuple[int, int, NDArray[Any]]  # (slot, first position, token ids or rows)


class RecordingBackend(ReferenceBackend):
    """Claims to record steps, so that a load reports what prevents that."""

    name = RECORDING

    def capture(self, step: StepFunction, note: Callable[[str], None]) -> StepFunction:
        """Return the step as it is."""
        return step


def with_reference(registry: Registry) -> Registry:
    """Return a registry that also has the backends `reference` and `recording`."""
    own = [
        Backend(NAME, REFERENCE, summary="NumPy and the references"),
        Backend(RECORDING, f"{__name__}:RecordingBackend", summary="as if it could record"),
    ]
    return Registry([*registry.plugins, *Registry.from_declarations({"apr-core": own}).plugins])


def usable_backend(registry: Registry) -> str:
    """Return the best backend that can be made on this machine, else `reference`."""
    for name in registry.backends_by_score():
        with suppress(AprError):  # its own kit reports why
            make_backend(registry, name, None)
            return name
    return NAME


class Oracle:
    """The transformers model of a config.json, in float32. `shapes` are its tensors'."""

    def __init__(self, class_name: str, hf: Mapping[str, Any]) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            skip(f"needs torch and transformers as the oracle; {error.name} is not installed")
        kind: Any = getattr(transformers, class_name, None)
        if kind is None:
            skip(f"transformers {transformers.__version__} has no {class_name}")
        config = kind.config_class.from_dict(dict(hf))
        self._torch: Any = torch
        self._model = kind._from_config(config, attn_implementation="eager").float().eval()
        self.shapes = {name: tuple(t.shape) for name, t in self._model.state_dict().items()}

    def take(self, weights: Mapping[str, Floats], contract: Contract, config: ModelConfig) -> None:
        """Copy the weights of a tiny checkpoint, under transformers' names."""
        own = contract.rules(config, contract.detect_layout(self.shapes))
        theirs = contract.rules(config, text_layout(contract))
        tensors = {
            to.name: self._torch.from_numpy(weights[since.name].copy())
            for to, since in zip(own, theirs, strict=True)
        }
        loaded = self._model.load_state_dict(tensors, strict=False)
        assert not loaded.unexpected_keys, f"transformers lacks {loaded.unexpected_keys}"
        self._model.tie_weights()

    def logits(self, ids: NDArray[np.int64]) -> Floats:
        """Return the logits, float32 [T, vocab], of ids [T]."""
        with self._torch.inference_mode():
            rows: Floats = self._model(self._torch.tensor(ids[None])).logits[0].float().numpy()
        return rows


class SequenceChecks(PluginConformance):
    """The output of a sequence depends neither on how it is cut nor on other sequences."""

    tolerance: float = 5e-5

    @property
    def where(self) -> str:
        """Where it runs, as the end of a message."""
        return ""

    def session(self) -> Any:
        """Return a new session, with slots to open, run, copy and close."""
        raise NotImplementedError

    def inputs(self, count: int, seed: int = 0) -> NDArray[Any]:
        """Return `count` random inputs: token ids or rows."""
        raise NotImplementedError

    @contextmanager
    def opened(self, *slots: int) -> Iterator[Any]:
        """Open slots of a session, and close them at the end."""
        session = self.session()
        for slot in slots:
            session.open(slot)
        try:
            yield session
        finally:
            for slot in slots:
                session.close(slot)

    def fresh(self, *pieces: NDArray[Any]) -> Floats:
        """Return the output [T, features] of a sequence in a new slot, run piece by piece."""
        with self.opened(0) as session:
            return resume(session, 0, 0, *pieces)

    def assert_same(self, actual: Floats, expected: Floats, what: str) -> None:
        """Fail if outputs [T, features] differ by more than the tolerance."""
        off = distance(actual, expected)
        assert off < self.tolerance, (
            f"{what}{self.where}: outputs differ by {off:.1e} of their standard deviation, at most "
            f"{self.tolerance:.0e} is rounding"
        )

    def test_prefill_equals_decode(self) -> None:
        """A prompt in one step, in two, and token by token gives the same outputs."""
        for n in LENGTHS:
            x = self.inputs(n)
            whole, ones = self.fresh(x), [x[i : i + 1] for i in range(n)]
            self.assert_same(self.fresh(*ones), whole, f"{n} tokens, one by one or at once")
            for k in sorted({1, 3, n // 2, GRID, n - 1} & {*range(1, n)}):
                what = f"{n} tokens, as {k} + {n - k} or at once"
                self.assert_same(self.fresh(x[:k], x[k:]), whole, what)

    def test_batch_equals_each_alone(self) -> None:
        """Two sequences of different lengths in one step give what each gives alone."""
        for long, short in ((GRID + 6, 5), (3, 1), (1, 1)):
            a, b = self.inputs(long + 4, seed=1), self.inputs(short + 4, seed=2)
            with self.opened(1, 0) as session:
                first = session.run((1, 0, a[:long]), (0, 0, b[:short]))
                then = session.run((0, short, b[short : short + 1]), (1, long, a[long : long + 1]))
                last = session.run((0, short + 1, b[short + 1 :]), (1, long + 1, a[long + 1 :]))
            what = f"{long} and {short} tokens in one step or each alone"
            self.assert_same(np.concatenate([first[0], then[1], last[1]]), self.fresh(a), what)
            self.assert_same(np.concatenate([first[1], then[0], last[0]]), self.fresh(b), what)

    def test_snapshots_resume(self) -> None:
        """A snapshot, put back into its slot or another, goes on as before, as often as wanted."""
        for n in (1, 7, GRID + 6):
            x, then, other = self.inputs(n, 1), self.inputs(5, 2), self.inputs(n + 5, 3)
            expected = self.fresh(x, then)[n:]
            with self.opened(0, 1) as session:
                session.run((0, 0, x))
                snapshot = session.snapshot(0, n)
                session.run((0, n, other), (1, 0, other))
                for slot in (0, 1, 1):
                    session.restore(slot, snapshot)
                    after = resume(session, slot, n, then[:2], then[2:])
                    what = f"snapshot after {n} tokens, into slot {slot}"
                    self.assert_same(after, expected, what)

    def test_slots_open_and_close(self) -> None:
        """Closing slots gives their memory back, and one that is opened again begins anew."""
        session, x = self.session(), self.inputs(9)
        for _ in range(3):
            held = session.nbytes()
            assert held == 0, f"{held} bytes are held though every slot is closed{self.where}"
            for slot in (3, 0):
                session.open(slot)
            after = resume(session, 0, 0, x[:5], x[5:])
            self.assert_same(after, self.fresh(x), "in a slot that held another sequence")
            session.run((3, 0, self.inputs(70)), (0, 9, self.inputs(2)))
            self.before_closing(session)
            for slot in (3, 0):
                session.close(slot)

    def before_closing(self, session: Any) -> None:
        """Check open slots that hold something; by default nothing."""


def resume(session: Any, slot: int, position: int, *pieces: NDArray[Any]) -> Floats:
    """Return the output [T, features] of the pieces, one step each, from `position` on."""
    outputs = []
    for piece in pieces:
        outputs += session.run((slot, position, piece))
        position += len(piece)
    return np.concatenate(outputs)
