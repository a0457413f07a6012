"""The kit for model families: what they say of a configuration, and how their tiny model runs."""

from __future__ import annotations

import numpy as np

from apr_core.errors import ContractError
from apr_devkit.kits import running
from apr_devkit.kits.checks import skip
from apr_devkit.kits.family_configs import FamilyConfigs
from apr_devkit.kits.family_rig import Floats
from apr_devkit.kits.mixer_rig import difference
from apr_devkit.kits.reference_backend import NAME as REFERENCE
from apr_devkit.kits.reference_backend import RECORDING
from apr_devkit.kits.widths import check_fit

GRID = 64  # prompts may be cut into chunks at its multiples
LENGTHS = (1, 2, 3, GRID - 1, GRID, GRID + 1, 2 * GRID + 2)
DECODED = 8  # tokens after a prompt


class FamilyConformance(FamilyConfigs):
    """Checks of one model family.

        class TestMine(FamilyConformance):
            family = "mine"

    `tiny_config` replaces what the family's own method says. `transformers` is the class to compare
    with, by default the first of the config's architectures. `backend` is one of the installed, by
    default the best that runs here, else references alone; failures name it. Equal results may
    differ by `tolerance` and agree with transformers within `parity`, both relative to the logits'
    standard deviation.
    """

    def test_round_trip_keeps_every_bit(self) -> None:
        """Checkpoint -> .apr keeps every tensor bit for bit, in float32 and in bfloat16."""
        expected = self.weights
        for recipe in ("f32", "source"):
            found = self.tiny.read_back(recipe)
            assert found.keys() == expected.keys(), (
                f"{recipe}: missing {sorted(expected.keys() - found.keys())[:3]}, unexpected "
                f"{sorted(found.keys() - expected.keys())[:3]}"
            )
            changed = [n for n, v in found.items() if not np.array_equal(v, expected[n])]
            assert not changed, f"{recipe}: {len(changed)} tensors changed, first {changed[0]}"

    def test_the_file_says_what_the_model_is(self) -> None:
        """Reading the .apr gives the configuration that the checkpoint gave."""
        generation = self.tiny.generation()
        expected = self.plugin_object.config(self.hf, generation)
        found = self.model.config
        assert found == expected, f"from the file {found}, from the checkpoint {expected}"

    def test_logits_are_sane(self) -> None:
        """Logits are finite float32 [T, vocab] and depend on the token and on what came before."""
        ids = self.tokens(12)
        logits = self.model.logits(ids)
        expected = (12, self.config.vocab_size)
        assert logits.shape == expected, f"found {logits.shape}, not {expected}, {self.where}"
        assert logits.dtype == np.float32, f"found {logits.dtype}, {self.where}"
        strange = int((~np.isfinite(logits)).sum())
        assert not strange, f"{strange} logits are not finite, {self.where}"
        assert logits.std(axis=1).min() > 0, f"a row of logits is constant, {self.where}"
        other = self.model.logits([(ids[0] + 1) % self.config.vocab_size, *ids[1:]])
        changed = difference(other[-1], logits[-1])
        assert changed > 1e-6, f"the first token changes nothing later, {self.where}"

    def test_the_contract_fits_the_plan(self) -> None:
        """Each matrix takes in what the one before it gives, in a layer of every kind."""
        contract, config = self.contract, self.config
        try:
            check_fit(contract, config, self.plugin_object.plan(config), self.registry)
        except ContractError as error:
            raise AssertionError(error.message) from error

    def test_prefill_equals_decode(self) -> None:
        """A prompt at once gives what its parts and single tokens give."""
        for n in LENGTHS:
            ids = self.tokens(n)
            whole = running.logits(self.model, ids)
            for k in sorted({1, n // 2, GRID, n - 3}):
                if 0 < k < n:
                    stop = min(n, k + DECODED)
                    pieces = [ids[:k], *([i] for i in ids[k:stop]), ids[stop:]]
                    parts = running.logits(self.model, *filter(None, pieces))
                    what = f"{n} tokens at once, or {k}, {stop - k} one by one and the rest"
                    self.assert_same(parts, whole, what)

    def test_chunked_prefill_is_prefill(self) -> None:
        """Chunks on the 64 grid give the same: the same bits where the backend says so."""
        ids = self.tokens(3 * GRID + 5)
        whole = running.last(self.model, ids)
        for size in (GRID, 2 * GRID):
            chunks = [ids[i : i + size] for i in range(0, len(ids), size)]
            found = running.last(self.model, *chunks)
            if running.same_bits(self.model):
                assert np.array_equal(found, whole), (
                    f"chunks of {size}, {self.where}: other bits than at once"
                )
            self.assert_same(found, whole, f"chunks of {size} or at once")

    def test_batch_equals_each_alone(self) -> None:
        """Two sequences in one batch give what each gives alone, through prefill and decode."""
        a, b = self.tokens(GRID + 3, 1), self.tokens(6, 2)
        alone = [running.logits(self.model, ids[:-1], ids[-1:]) for ids in (a, b)]
        with running.slots(self.model, 2) as (first, second):
            got = self.model.forward([(first, a[:-1]), (second, b[:-1])], all_rows=True)
            then = self.model.forward([(second, b[-1:]), (first, a[-1:])])
        self.assert_same(np.concatenate([got[: len(a) - 1], then[1:]]), alone[0], "first of two")
        self.assert_same(np.concatenate([got[len(a) - 1 :], then[:1]]), alone[1], "second of two")

    def test_snapshots_resume(self) -> None:
        """A snapshot goes on in another slot as it would have in its own."""
        for n in (1, GRID + 6):
            ids, other = self.tokens(n + 4, 1), self.tokens(20, 2)
            expected = running.logits(self.model, ids[:n], ids[n:])[n:]
            with running.slots(self.model, 2) as (first, second):
                self.model.forward([(first, ids[:n]), (second, other)])
                snapshot = self.model.snapshot(first)
                self.model.forward([(first, other)])
                self.model.restore(second, snapshot)
                found = self.model.forward([(second, ids[n:])], all_rows=True)
            self.assert_same(found, expected, f"from a snapshot after {n} tokens")

    def test_steps_can_be_recorded(self) -> None:
        """A decode step is nothing but ops, so backends may repeat it without running Python."""
        with self.tiny.load(RECORDING) as model:
            found = [line for line in model.report.unrecorded if "on the reference" not in line]
        assert not found, f"steps are not recorded: {'; '.join(found)}"

    def test_rewound_sequences_go_on(self) -> None:
        """If all states say they are rewindable, a sequence goes on from an earlier position."""
        if not self.model.rewindable:
            skip("not every layer's state claims to be rewindable")
        for n, kept in ((20, 7), (2 * GRID + 2, GRID)):
            ids, other = self.tokens(n, 1), self.tokens(5, 2)
            expected = running.logits(self.model, ids[:kept], other)[kept:]
            with running.slots(self.model, 1) as (slot,):
                self.model.forward([(slot, ids)])
                self.model._lengths[slot] = kept
                found = self.model.forward([(slot, other)], all_rows=True)
            self.assert_same(found, expected, f"{n} tokens cut back to {kept}")

    def test_slots_are_reused(self) -> None:
        """A slot that held another sequence gives the same; closed slots hold no memory."""
        ids = self.tokens(10)
        expected = running.logits(self.model, ids)
        running.logits(self.model, self.tokens(50, 3))
        self.assert_same(running.logits(self.model, ids), expected, "in a slot used before")
        held = self.model.state_bytes()
        assert held == 0, (
            f"{held} bytes of state are held though every slot is closed, {self.where}"
        )

    def test_runs_on_references_alone(self) -> None:
        """A backend without a single kernel gives the same logits."""
        ids = self.tokens(2 * GRID + 2)
        found = self.model.logits(ids)
        with self.tiny.load(REFERENCE) as model:
            expected = model.logits(ids)
        error = difference(found, expected)
        assert error < self.parity, (
            f"{self.where} and on references logits differ by {error:.1e} of their "
            f"standard deviation, expected less than {self.parity:.0e}"
        )

    def _assert_parity(self, actual: Floats, expected: Floats, what: str) -> None:
        found = difference(actual, expected)
        assert found < self.parity, (
            f"{what}, {self.where}: differs from transformers by {found:.1e} of the logits' "
            f"standard deviation, expected less than {self.parity:.0e}"
        )

    def test_parity_with_transformers(self) -> None:
        """Logits are those of transformers: at once, decoded token by token, and in a batch."""
        everything = [self.tokens(n + DECODED, n) for n in (*LENGTHS, 200)]
        expected = [self.filled_oracle.logits(ids) for ids in everything]
        for ids, wanted in zip(everything, expected, strict=True):
            n = len(ids) - DECODED
            self._assert_parity(running.logits(self.model, ids), wanted, f"{len(ids)} tokens")
            steps = [ids[:n], *([i] for i in ids[n:])]
            found = running.logits(self.model, *steps)
            self._assert_parity(found, wanted, f"{n} tokens, then {DECODED} one by one")
        with running.slots(self.model, len(everything)) as opened:
            batch = self.model.forward(list(zip(opened, everything, strict=True)), all_rows=True)
        self._assert_parity(batch, np.concatenate(expected), "all of them in one batch")

    def test_constants_come_from_the_config(self) -> None:
        """Another epsilon or base of rope in config.json gives other logits: none is hard-coded."""
        ids = self.tokens(GRID)
        usual, others = running.logits(self.model, ids), self.other_constants()
        for key, hf in others.items():
            changed = difference(self.logits_with(key, hf, ids), usual)
            assert changed > self.tolerance, (
                f"another {key} in config.json changes nothing, {self.where}: the family, or its "
                "mixer, has a number of its own"
            )

    def test_parity_with_other_constants(self) -> None:
        """With another epsilon or base of rope, too, logits are those of transformers."""
        ids = self.tokens(GRID)
        for key, hf in self.other_constants().items():
            wanted = self.make_filled_oracle(hf).logits(ids)
            self._assert_parity(self.logits_with(key, hf, ids), wanted, f"with another {key}")
