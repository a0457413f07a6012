"""The kit for model families: what they say of a configuration, and how their tiny model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.contract import Contract
from apr_core.errors import ContractError, PluginConflict, PluginNotFound
from apr_core.hfconfig import SAMPLING
from apr_core.model.loading import MLP_MATRICES, NORMS, make_mixers
from apr_core.model.model import Model
from apr_core.modelspec import FamilyPlugin, ModelConfig
from apr_core.testing import running
from apr_core.testing.checks import skip
from apr_core.testing.mixer_rig import difference
from apr_core.testing.oracle import Oracle
from apr_core.testing.plugin import PluginConformance
from apr_core.testing.reference_backend import NAME as REFERENCE
from apr_core.testing.tiny import random_weights, text_layout, tiny_config

Floats = NDArray[np.float32]
GRID = 64  # prompts may be cut into chunks at its multiples
LENGTHS = (1, 2, 3, GRID - 1, GRID, GRID + 1, 2 * GRID + 2)
DECODED = 8  # tokens after a prompt
NEEDED = ("hidden_size", "num_hidden_layers", "vocab_size")  # nobody can guess these
STRANGER = ("ArchitectureOfNobodyForCausalLM", "model_type_of_nobody")
TEMPERATURE = 0.7


class FamilyConformance(PluginConformance):
    """Checks of one model family.

        class TestMine(FamilyConformance):
            family = "mine"

    `tiny_config` replaces what the family's own method says. `transformers` is the class to compare
    with, by default the first of the config's architectures. `backend` is one of the installed, by
    default the first that runs here, else references alone. Equal results may differ by `tolerance`
    and agree with transformers within `parity`, both relative to the logits' standard deviation.
    """

    kind = "family"
    family: str = ""
    tiny_config: Mapping[str, Any] | None = None
    transformers: str = ""
    backend: str = ""
    tolerance: float = 5e-5
    parity: float = 2e-4

    @property
    def plugin_object(self) -> FamilyPlugin:
        """The family object."""
        made: FamilyPlugin = self.registry.make("family", self.owned.qualified)
        return made

    @property
    def hf(self) -> dict[str, Any]:
        """config.json of the tiny model, a copy."""
        found = self.tiny_config or tiny_config(self.plugin_object, self.name)
        return running.copy_of(found)

    @property
    def config(self) -> ModelConfig:
        """What the family reads from it."""
        return self.plugin_object.config(self.hf)

    @property
    def contract(self) -> Contract:
        """The family's contract."""
        return self.plugin_object.contract()

    @property
    def weights(self) -> dict[str, Floats]:
        """The tiny model's tensors by name, as `text_layout` calls them."""
        make = partial(random_weights, self.contract, self.config, text_layout(self.contract), 0)
        return self.kept("weights", make)

    @property
    def tiny(self) -> running.Tiny:
        """The tiny model's files."""
        make = partial(running.Tiny, self.registry, self.owned.qualified, self.hf, self.folder())
        return self.kept("tiny", make)

    @property
    def model(self) -> Model:
        """The tiny model in float32, loaded."""
        return self.kept("model", lambda: self.tiny.load(self.backend))

    def tokens(self, count: int, seed: int = 0) -> list[int]:
        """Random token ids."""
        rng = np.random.default_rng([seed, count])
        ids: list[int] = rng.integers(0, self.config.vocab_size, count).tolist()
        return ids

    def assert_same(self, actual: Floats, expected: Floats, what: str) -> None:
        """Fail if logits [T, vocab] differ by more than the tolerance."""
        found = difference(actual, expected)
        assert found < self.tolerance, (
            f"{what}: logits differ by {found:.1e} of their standard deviation, at most "
            f"{self.tolerance:.0e} is rounding"
        )

    def test_its_own_config_leads_to_it(self) -> None:
        """Its architectures lead to it, the contract has the same, and none is a stranger's."""
        declared, contract, hf = self.declaration, self.contract, self.hf
        assert contract.family == self.name, f"the contract is of family {contract.family!r}"
        assert self.config.family == self.name, f"config() says family {self.config.family!r}"
        for field in ("architectures", "model_types"):
            ours, theirs = set(getattr(declared, field)), set(contract.content.get(field, ()))
            assert ours == theirs, f"{field}: declared {sorted(ours)}, in contract {sorted(theirs)}"
        try:
            found = self.registry.family_for(hf["architectures"], str(hf.get("model_type", "")))
        except (KeyError, PluginNotFound, PluginConflict) as error:
            raise AssertionError(f"nobody could import tiny_config(): {error}") from error
        assert found.declaration.name == self.name, f"tiny_config() leads to {found.qualified}"
        strangers = set(declared.architectures) & {STRANGER[0], "*", ""}
        strangers |= set(declared.model_types) & {STRANGER[1], "*", ""}
        assert not strangers, f"claims {sorted(strangers)}, which is everybody's or nobody's"

    def test_missing_keys_are_named(self) -> None:
        """A config.json without a key it needs is refused by a ContractError that names the key."""
        for path in running.leaves(self.hf):
            key = path[-1]
            changed = running.replaced(self.hf, path)
            refused = self._refusal(changed, f"without {'.'.join(path)}")
            if refused is None:
                assert key not in NEEDED, f"config() invents {key}, which config.json lacks"
            else:
                assert key in refused, f"without {key!r} the error is {refused!r}: name the key"

    def test_nonsense_is_refused_by_name(self) -> None:
        """A number that is text, or less than nothing, is refused by name, or is not looked at."""
        for path in running.leaves(self.hf):
            if not _number(running.value_at(self.hf, path)):
                continue
            for nonsense in ("many", -1):
                changed = running.replaced(self.hf, path, nonsense)
                what = f"with {'.'.join(path)} = {nonsense!r}"
                refused = self._refusal(changed, what)
                if refused is None:
                    assert path[-1] not in NEEDED, f"{what}: config() takes it"
                else:
                    assert path[-1] in refused, f"{what} the error is {refused!r}: name the key"

    def _refusal(self, hf: Mapping[str, Any], what: str) -> str | None:
        try:
            self.plugin_object.config(hf)
        except ContractError as error:
            return error.message
        except Exception as error:
            raise AssertionError(
                f"{what} config() raises {type(error).__name__}: {error}, expected ContractError"
            ) from error
        return None

    def test_generation_defaults_are_read(self) -> None:
        """Stop ids are token ids from both configs, sampling defaults are named numbers."""
        generation = {"do_sample": True, "temperature": TEMPERATURE, "eos_token_id": [3, 5]}
        alone, both = self.config, self.plugin_object.config(self.hf, generation)
        for config in (alone, both):
            fits = all(type(i) is int and 0 <= i < config.vocab_size for i in config.stop_ids)
            assert isinstance(config.stop_ids, tuple) and fits, f"stop_ids {config.stop_ids}"
            wrong = [k for k, v in config.sampling.items() if k not in SAMPLING or not _number(v)]
            assert not wrong, (
                f"sampling: {wrong} are not among {', '.join(SAMPLING)}, or no numbers"
            )
        assert {3, 5, *alone.stop_ids} <= set(both.stop_ids), (
            f"eos_token_id of generation_config.json is lost: stop_ids {both.stop_ids}"
        )
        found = both.sampling.get("temperature")
        assert found == TEMPERATURE, f"temperature {TEMPERATURE} is read as {found}"

    def test_plan_fits_the_contract(self) -> None:
        """Every layer has a declared mixer, which takes its options and finds its weights."""
        config, contract = self.config, self.contract
        plan = self.plugin_object.plan(config)
        assert len(plan.blocks) == config.num_layers == len(config.layer_types), (
            f"{config.num_layers} layers: {len(plan.blocks)} blocks, "
            f"{len(config.layer_types)} layer types"
        )
        used, declared = {b.mixer for b in plan.blocks}, set(self.declaration.attention)
        assert used == declared, (
            f"the tiny plan uses the mixers {sorted(used)}, declared are {sorted(declared)}"
        )
        assert plan.norm_offset == contract.norm_offset, (
            f"norm_offset is {plan.norm_offset} in the plan, {contract.norm_offset} in the contract"
        )
        for n, mixer in enumerate(make_mixers(self.registry, plan)):
            self._assert_roles(n, {*mixer.matrices, *mixer.vectors, *MLP_MATRICES, *NORMS})

    def _assert_roles(self, layer: int, read: set[str]) -> None:
        rules = self.contract.rules(self.config, text_layout(self.contract))
        listed = {rule.role for rule in rules if rule.layer == layer}
        assert listed == read, (
            f"layer {layer}: the contract has {sorted(listed - read)}, which nothing reads, and "
            f"lacks {sorted(read - listed)}, which its mixer needs"
        )

    def test_wrong_tensors_are_named(self) -> None:
        """A missing, an unexpected or a misshapen tensor is refused by name, in every layout."""
        for layout in self.contract.content["layouts"]:
            rules = self.contract.rules(self.config, layout)
            shapes = {rule.name: rule.shape for rule in rules}
            assert len(shapes) == len(rules), f"layout {layout}: two roles share a tensor's name"
            assert (
                self.contract.check(self.config, shapes).layout in self.contract.content["layouts"]
            )
            self._assert_refused({**shapes, "nobody.reads.this": (1,)}, "nobody.reads.this")
            for role in dict.fromkeys(rule.role for rule in rules):
                name = next(rule.name for rule in rules if rule.role == role)
                self._assert_refused({k: v for k, v in shapes.items() if k != name}, name)
                self._assert_refused(shapes | {name: (*shapes[name][:-1], 7)}, name)

    def _assert_refused(self, shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
        try:
            self.contract.check(self.config, shapes)
        except ContractError as error:
            assert name in str(error), f"the error does not name {name}: {error}"
            return
        raise AssertionError(f"a checkpoint is accepted although {name} is wrong or missing")

    def test_contract_is_that_of_transformers(self) -> None:
        """The contract names exactly the tensors that transformers has, in these shapes."""
        self.contract.check(self.config, self.oracle.shapes)

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
        assert logits.shape == (12, self.config.vocab_size), f"found {logits.shape}"
        assert logits.dtype == np.float32, f"found {logits.dtype}"
        assert np.isfinite(logits).all(), f"{(~np.isfinite(logits)).sum()} are not finite"
        assert logits.std(axis=1).min() > 0, "a row of logits is constant"
        other = self.model.logits([(ids[0] + 1) % self.config.vocab_size, *ids[1:]])
        assert difference(other[-1], logits[-1]) > 1e-6, "the first token changes nothing later"

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
                assert np.array_equal(found, whole), f"chunks of {size}: other bits than at once"
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
        assert held == 0, f"{held} bytes of state are held though every slot is closed"

    def test_runs_on_references_alone(self) -> None:
        """A backend without a single kernel gives the same logits."""
        ids = self.tokens(2 * GRID + 2)
        found = self.model.logits(ids)
        with self.tiny.load(REFERENCE) as model:
            expected = model.logits(ids)
        error = difference(found, expected)
        assert error < self.parity, (
            f"{self.model.backend.name} and references differ by {error:.1e} of the logits' "
            f"standard deviation, expected less than {self.parity:.0e}"
        )

    @property
    def oracle(self) -> Oracle:
        """The transformers model with the same weights; the check is skipped without it."""
        return self.kept("oracle", self._make_oracle)

    def _make_oracle(self) -> Oracle:
        hf = self.hf
        name = self.transformers or str(next(iter(hf.get("architectures") or ()), ""))
        return Oracle(name, hf)

    def _expected(self, ids: Sequence[int]) -> Floats:
        oracle, contract = self.oracle, self.contract
        fill = partial(oracle.take, self.weights, contract, self.config, text_layout(contract))
        self.kept("oracle is filled", fill)
        return oracle.logits(ids)

    def _assert_parity(self, actual: Floats, expected: Floats, what: str) -> None:
        found = difference(actual, expected)
        assert found < self.parity, (
            f"{what}: differs from transformers by {found:.1e} of the logits' standard deviation, "
            f"expected less than {self.parity:.0e}"
        )

    def test_parity_with_transformers(self) -> None:
        """Logits are those of transformers: at once, decoded token by token, and in a batch."""
        everything = [self.tokens(n + DECODED, n) for n in (*LENGTHS, 200)]
        expected = [self._expected(ids) for ids in everything]
        for ids, wanted in zip(everything, expected, strict=True):
            n = len(ids) - DECODED
            self._assert_parity(running.logits(self.model, ids), wanted, f"{len(ids)} tokens")
            steps = [ids[:n], *([i] for i in ids[n:])]
            found = running.logits(self.model, *steps)
            self._assert_parity(found, wanted, f"{n} tokens, then {DECODED} one by one")
        with running.slots(self.model, len(everything)) as opened:
            batch = self.model.forward(list(zip(opened, everything, strict=True)), all_rows=True)
        self._assert_parity(batch, np.concatenate(expected), "all of them in one batch")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
