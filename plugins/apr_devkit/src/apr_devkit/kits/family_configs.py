"""Checks of what a family says of a configuration: its reader, its plan and its contract."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from apr_core.errors import ContractError, PluginConflict, PluginNotFound
from apr_core.family.hfconfig import SAMPLING
from apr_core.model.loading import MLP_MATRICES, NORMS, make_mixers
from apr_devkit.kits import running
from apr_devkit.kits.family_rig import FamilyKit
from apr_devkit.kits.tiny import text_layout

NEEDED = ("hidden_size", "num_hidden_layers", "vocab_size")  # nobody can guess these
STRANGER = ("ArchitectureOfNobodyForCausalLM", "model_type_of_nobody")
TEMPERATURE = 0.7


class FamilyConfigs(FamilyKit):
    """The checks themselves."""

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

    def test_sizes_tell_axes_apart(self) -> None:
        """Sizes of the tiny model that mean different things differ: swapped axes would show."""
        c = self.config
        sizes = {
            "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size,
            "vocab_size": c.vocab_size, "num_attention_heads": c.num_heads,
        }  # fmt: skip
        if any(path[-1] == "head_dim" for path in running.leaves(self.hf)):  # else it follows
            sizes |= {
                "head_dim": c.head_dim, "num_attention_heads * head_dim": c.num_heads * c.head_dim,
            }  # fmt: skip
        same = [
            f"{a} and {b} are {m}" for (a, m), (b, n) in combinations(sizes.items(), 2) if m == n
        ]
        assert not same, f"{', '.join(same)}: give the tiny model sizes that differ"

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


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
