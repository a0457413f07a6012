"""The kit for model families: how they read a configuration, and how their tiny model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial, reduce
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import Contract, ContractError, FamilyPlugin, ModelConfig
from apr_core.runtime import GRID, Model, PluginConflict, PluginNotFound, SamplingParams, load
from apr_devkit.kits import rig
from apr_devkit.kits.checks import equal, refusal, shared, skip
from apr_devkit.kits.measures import Floats, distance
from apr_devkit.kits.rig import LENGTHS, Piece, SequenceChecks
from apr_devkit.tiny import random_weights, tiny_apr, tiny_config

NEEDED = ("hidden_size", "num_hidden_layers", "vocab_size")  # they have no default
STRANGERS = {"ArchitectureOfNobodyForCausalLM", "model_type_of_nobody", "*", ""}
TEMPERATURE = 0.7
DECODED = 8  # tokens after a prompt
OTHER: dict[str, Callable[[float], float]] = {  # numbers that change logits but no shape
    "rms_norm_eps": lambda eps: eps + 0.1,
    "rope_theta": lambda base: base / 100,
}
NUMBERS = (int, float)
HF = Mapping[str, Any]  # a config.json
Path = tuple[str, ...]
REMOVED: Any = object()


class ModelSession:
    """Slots of a model. A step of single tokens may be one that the backend has captured."""

    def __init__(self, model: Model) -> None:
        self.model, self.slots = model, dict[int, int]()
        self.nbytes = model.state_bytes

    def open(self, slot: int) -> None:
        """Open a slot."""
        self.slots[slot] = self.model.new_slot()

    def close(self, slot: int) -> None:
        """Close a slot."""
        self.model.free_slot(self.slots.pop(slot))

    def run(self, *pieces: Piece) -> list[Floats]:
        """Run one step; return each piece's logits [n, vocab]."""
        for slot, position, _ in pieces:
            self.model._lengths[self.slots[slot]] = position
        parts = [(self.slots[slot], ids.tolist()) for slot, _, ids in pieces]
        rows = self.model.forward(parts, all_rows=any(len(ids) > 1 for _, ids in parts))
        return np.split(rows, np.cumsum([len(ids) for _, ids in parts])[:-1])

    def snapshot(self, slot: int, length: int) -> Any:
        """Return a snapshot of the slot's state."""
        return self.model.snapshot(self.slots[slot])

    def restore(self, slot: int, snapshot: Any) -> None:
        """Restore the slot's state from a snapshot."""
        self.model.restore(self.slots[slot], snapshot)


class FamilyConformance(SequenceChecks):
    """Checks of one model family.

        class TestMine(FamilyConformance):
            family = "mine"

    `tiny_config` replaces the family's own method. `transformers` is the class to compare with, by
    default the first of the config's architectures. `backend` is an installed one, by default the
    best that runs here, else references alone; failures name it. Equal results may differ by
    `tolerance`, those of transformers by `parity`, relative to the logits' standard deviation.
    """

    kind = "family"
    family: str = ""
    tiny_config: HF | None = None
    transformers: str = ""
    backend: str = ""
    parity: float = 2e-4

    @property
    def plugin_object(self) -> FamilyPlugin:
        """The family object."""
        family: FamilyPlugin = self.registry.make("family", self.owned.qualified)
        return family

    @property
    def hf(self) -> dict[str, Any]:
        """A copy of the tiny model's config.json."""
        return deepcopy(dict(self.tiny_config or tiny_config(self.plugin_object, self.name)))

    @property
    def config(self) -> ModelConfig:
        """The family's reading of the config.json."""
        return self.plugin_object.config(self.hf)

    @property
    def contract(self) -> Contract:
        """The family's contract."""
        return self.plugin_object.contract()

    @shared
    def weights(self) -> dict[str, Floats]:
        """Return random weights of the tiny model, {name: float32}."""
        return random_weights(self.contract, self.config)

    @shared
    def model(self) -> Model:
        """Return the tiny model on the backend of this kit."""
        return self.tiny_model(self.backend)

    def tiny_model(self, backend: str = "", hf: HF | None = None, of: str = "tiny") -> Model:
        """Return the tiny model on another backend, or with another config.json, in folder `of`."""
        options: dict[str, Any] = {"config": hf or self.hf, "registry": self.registry}
        make = partial(tiny_apr, self.owned.qualified, self.folder() / of, **options)
        registry, path = rig.with_reference(self.registry), self.once(f"file {of}", make)
        name = backend or rig.usable_backend(self.registry)
        return load(path, name, registry=registry, kv_type="f32")

    @property
    def where(self) -> str:
        """The backend, as the end of a message."""
        return f", on backend {self.model.backend.name}"

    def session(self) -> ModelSession:
        """Return slots of the tiny model."""
        return ModelSession(self.model)

    def inputs(self, count: int, seed: int = 0) -> NDArray[np.int64]:
        """Return random token ids."""
        rng = np.random.default_rng([seed, count])
        return rng.integers(0, self.config.vocab_size, count)

    def assert_parity(self, actual: Floats, expected: Floats, what: str) -> None:
        """Fail if logits differ by more than `parity`, relative to their standard deviation."""
        off = distance(actual, expected)
        said = f"logits {what}: they differ by {off:.1e} of their standard deviation"
        assert off < self.parity, f"{said}, expected less than {self.parity:.0e}"

    def oracle(self, hf: HF | None = None, filled: bool = True) -> rig.Oracle:
        """Return the transformers model, `filled` with the tiny model's weights."""
        hf = hf or self.hf
        name = self.transformers or str(next(iter(hf.get("architectures") or ()), ""))
        oracle = rig.Oracle(name, hf)
        if filled:
            oracle.take(self.weights, self.contract, self.config)
        return oracle

    def with_other_constants(self, ids: NDArray[np.int64]) -> Iterator[tuple[str, HF, Floats]]:
        """Yield (key, config.json with another value of it, logits [T, vocab]); skips if none."""
        others: dict[str, HF] = {}
        for path, value in _leaves(self.hf):
            if path[-1] in OTHER and type(value) in NUMBERS:
                hf = others.get(path[-1], self.hf)
                others[path[-1]] = _replaced(hf, path, OTHER[path[-1]](value))
        for key, hf in others.items():
            with self.tiny_model(self.backend, hf, f"another {key}") as model:
                yield key, hf, model.logits(ids.tolist())
        if not others:
            skip(f"its tiny config.json has none of {', '.join(OTHER)}")

    # how it reads a configuration

    def test_its_own_config_leads_to_it(self) -> None:
        """Its architectures lead to it, and none is a stranger's."""
        declared, contract, hf = self.declaration, self.contract, self.hf
        equal("family of the contract", contract.family, self.name)
        equal("family that config() says", self.config.family, self.name)
        strange = sorted(STRANGERS & {*declared.architectures, *declared.model_types})
        assert not strange, f"claims {strange}, which is everybody's or nobody's"
        try:
            owner = self.registry.family_for(hf["architectures"], str(hf.get("model_type", "")))
        except (KeyError, PluginNotFound, PluginConflict) as error:
            raise AssertionError(f"nobody could import tiny_config(): {error}") from error
        equal("family that tiny_config() leads to", owner.declaration.name, self.name)

    def test_missing_keys_and_nonsense_are_named(self) -> None:
        """Without a key it needs, or with nonsense for a number, config.json is refused by name.

        Nonsense is text, and what is less than nothing. What is not looked at may be anything.
        """
        for path, value in _leaves(self.hf):
            for wrong in (REMOVED, "many", -1) if type(value) in NUMBERS else (REMOVED,):
                key, hf = ".".join(path), _replaced(self.hf, path, wrong)
                what = f"without {key}" if wrong is REMOVED else f"with {key} = {wrong!r}"
                error = refusal(ContractError, f"{what} config()", self.plugin_object.config, hf)
                assert error or path[-1] not in NEEDED, f"{what} config() invents {path[-1]}"
                said = error.message if error else path[-1]
                assert path[-1] in said, f"{what} the error is {said!r}: name the key"

    def test_sizes_tell_axes_apart(self) -> None:
        """Sizes of the tiny model that mean different things differ: swapped axes would show."""
        c = self.config
        sizes = {
            "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size,
            "vocab_size": c.vocab_size, "num_attention_heads": c.num_heads,
        }  # fmt: skip
        if any(path[-1] == "head_dim" for path, _ in _leaves(self.hf)):  # else it is derived
            across = c.num_heads * c.head_dim
            sizes |= {"head_dim": c.head_dim, "num_attention_heads * head_dim": across}
        pairs = combinations(sizes.items(), 2)
        same = [f"{a} and {b} are {m}" for (a, m), (b, n) in pairs if m == n]
        assert not same, f"{', '.join(same)}: give the tiny model sizes that differ"

    def test_generation_defaults_are_read(self) -> None:
        """Stop ids are token ids from both configs, sampling defaults are named numbers."""
        generation = {"do_sample": True, "temperature": TEMPERATURE, "eos_token_id": [3, 5]}
        alone, both = self.config, self.plugin_object.config(self.hf, generation)
        for config in (alone, both):
            fits = all(type(i) is int and 0 <= i < config.vocab_size for i in config.stop_ids)
            assert isinstance(config.stop_ids, tuple) and fits, f"stop_ids {config.stop_ids}"
            sampling: Any = config.sampling
            SamplingParams(**sampling)
        assert {3, 5, *alone.stop_ids} <= set(both.stop_ids), (
            f"eos_token_id of generation_config.json is lost: stop_ids {both.stop_ids}"
        )
        equal("temperature that is read", both.sampling.get("temperature"), TEMPERATURE)

    def test_plan_fits_the_contract(self) -> None:
        """The plan has what the config says, and reads every tensor of the contract as it is."""
        config, plan = self.config, self.plugin_object.plan(self.config)
        equal("number of blocks", len(plan.blocks), config.num_layers)
        equal("number of layer types", len(config.layer_types), config.num_layers)
        equal("norm_offset of the plan", plan.norm_offset, self.contract.norm_offset)
        self.tiny_model(rig.NAME).close()

    def test_wrong_tensors_are_named(self) -> None:
        """A missing, an unexpected or a misshapen tensor is refused by name, in every layout."""
        layouts = self.contract.content["layouts"]
        for layout in layouts:
            rules = self.contract.rules(self.config, layout)
            shapes = {rule.name: rule.shape for rule in rules}
            assert len(shapes) == len(rules), f"layout {layout}: two roles share a tensor's name"
            assert self.contract.check(self.config, shapes).layout in layouts
            self._assert_refused({**shapes, "nobody.reads.this": (1,)}, "nobody.reads.this")
            for name in {rule.role: rule.name for rule in rules}.values():
                self._assert_refused({k: v for k, v in shapes.items() if k != name}, name)
                self._assert_refused(shapes | {name: (*shapes[name][:-1], 7)}, name)

    def _assert_refused(self, shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
        error = refusal(ContractError, "check()", self.contract.check, self.config, shapes)
        assert error, f"a checkpoint is accepted although {name} is wrong or missing"
        assert name in str(error), f"the error does not name {name}: {error}"

    def test_contract_is_that_of_transformers(self) -> None:
        """The contract names exactly the tensors that transformers has, in these shapes."""
        self.contract.check(self.config, self.oracle(filled=False).shapes)

    # how the tiny model runs

    def test_logits_are_sane(self) -> None:
        """Logits are finite float32 [T, vocab] and depend on the token and on what came before."""
        ids, size = self.inputs(12), self.config.vocab_size
        rows = self.fresh(ids)
        equal(f"shape of logits{self.where}", rows.shape, (12, size))
        equal(f"dtype of logits{self.where}", rows.dtype.name, "float32")
        strange = int((~np.isfinite(rows)).sum())
        assert not strange, f"{strange} logits are not finite{self.where}"
        assert rows.std(axis=1).min() > 0, f"a row of logits is constant{self.where}"
        ids[0] = (ids[0] + 1) % size
        changed = distance(self.fresh(ids)[-1], rows[-1])
        assert changed > 1e-6, f"the first token changes nothing later{self.where}"

    def test_chunked_prefill_is_prefill(self) -> None:
        """Chunks on the 64 grid give the same: the same bits where the backend says so."""
        ids, model = self.inputs(3 * GRID + 5), self.model
        # the claim is about a backend's kernels, not about references
        kernels = all(bound.via != "reference" for bound in model.report.bound.values())
        whole = self.fresh(ids)
        for size in (GRID, 2 * GRID):
            rows = self.fresh(*np.split(ids, range(size, len(ids), size)))
            same = np.array_equal(rows, whole) or not (kernels and model.backend.bitwise_rows)
            assert same, f"chunks of {size}{self.where}: other bits than at once"
            self.assert_same(rows, whole, f"chunks of {size} or at once")

    def test_steps_can_be_recorded(self) -> None:
        """A decode step is nothing but ops, so backends may repeat it without running Python."""
        with self.tiny_model(rig.RECORDING) as model:
            lines = [line for line in model.report.unrecorded if "on the reference" not in line]
        assert not lines, f"steps are not recorded: {'; '.join(lines)}"

    def test_runs_on_references_alone(self) -> None:
        """A backend without a single kernel gives the same logits."""
        ids = self.inputs(2 * GRID + 2)
        with self.tiny_model(rig.NAME) as model:
            expected = model.logits(ids.tolist())
        self.assert_parity(self.fresh(ids), expected, f"{self.where[2:]} and on references")

    def test_parity_with_transformers(self) -> None:
        """Logits are those of transformers: at once, decoded token by token, and in a batch."""
        oracle, everything = self.oracle(), [self.inputs(n + DECODED, n) for n in (*LENGTHS, 200)]
        expected = [oracle.logits(ids) for ids in everything]
        for ids, wanted in zip(everything, expected, strict=True):
            n, what = len(ids) - DECODED, f"{self.where[2:]} and of transformers, {len(ids)} tokens"
            self.assert_parity(self.fresh(ids), wanted, what)
            rows = self.fresh(ids[:n], *np.split(ids[n:], DECODED))
            self.assert_parity(rows, wanted, f"{what}, {DECODED} of them one by one")
        with self.opened(*range(len(everything))) as session:
            rows = np.concatenate(session.run(*((i, 0, ids) for i, ids in enumerate(everything))))
        what = f"{self.where[2:]} and of transformers, all in one batch"
        self.assert_parity(rows, np.concatenate(expected), what)

    def test_constants_come_from_the_config(self) -> None:
        """Another epsilon or base of rope in config.json gives other logits: none is hard-coded."""
        ids = self.inputs(GRID)
        usual = self.fresh(ids)
        for key, _, rows in self.with_other_constants(ids):
            what = f"another {key} in config.json changes nothing{self.where}"
            changed = distance(rows, usual)
            assert changed > self.tolerance, f"{what}: the family, or its mixer, has its own"

    def test_parity_with_other_constants(self) -> None:
        """With another epsilon or base of rope, too, logits are those of transformers."""
        ids = self.inputs(GRID)
        for key, hf, rows in self.with_other_constants(ids):
            what = f"{self.where[2:]} and of transformers, with another {key}"
            self.assert_parity(rows, self.oracle(hf).logits(ids), what)


def _leaves(hf: HF, above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield (path of keys, value) of everything in a config.json that is not an object."""
    for key, value in hf.items():
        path = (*above, key)
        yield from _leaves(value, path) if isinstance(value, Mapping) else [(path, value)]


def _replaced(hf: HF, path: Path, value: Any = REMOVED) -> dict[str, Any]:
    """Return a copy with another value at the path, or without it."""
    changed = deepcopy(dict(hf))
    inner = reduce(dict.__getitem__, path[:-1], changed)
    inner[path[-1]] = value
    if value is REMOVED:
        del inner[path[-1]]
    return changed
