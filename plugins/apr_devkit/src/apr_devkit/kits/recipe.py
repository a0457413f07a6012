"""The kit of recipes: an answer for every class of tensor, and always the same one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from apr_core.errors import PluginNotFound
from apr_core.family.contract.schema import schema
from apr_core.family.modelspec import TensorClass
from apr_core.format import NATIVE
from apr_core.importing.choosing import KEEP, SOURCE
from apr_devkit.kits.checks import skip
from apr_devkit.kits.fresh import run_fresh
from apr_devkit.kits.plugin import PluginConformance

FLOATS = ("f32", "f16", "bf16")
SHAPES = ((256, 256), (1, 1), (7, 33), (4864, 896), (151936, 896), (64,), (96, 1, 4))
LAYERS = ((None, 24), (0, 1), (0, 24), (1, 24), (11, 24), (23, 24), (79, 80))  # (layer, of)

ANSWERS = """
import json, sys
from apr_devkit.kits.recipe import answers_of
print(json.dumps(answers_of(sys.argv[1])))
"""


class RecipeConformance(PluginConformance):
    """Checks of one recipe.

        class TestMine(RecipeConformance):
            recipe = "mine"

    It is asked about every class of tensor that contracts know, in roles and shapes of any family.
    """

    kind = "recipe"
    recipe: str = ""

    def made(self) -> Any:
        """The checked recipe."""
        return self.registry.make("recipe", self.name)

    def test_every_tensor_gets_a_format_it_lists(self) -> None:
        """Each class of tensor gets one of the declared formats, a float, or its own precision."""
        known = {*self.declaration.formats, *FLOATS, SOURCE}
        for tensor in questions():
            answer = self.made().format_for(tensor)
            assert isinstance(answer, str) and answer in known, (
                f"{_text(tensor)} gets {answer!r}, expected one of {', '.join(sorted(known))}"
            )

    def test_listed_formats_are_numbers_of_blocks(self) -> None:
        """The declaration lists quantizers alone: floats need no listing."""
        for name in self.declaration.formats:
            assert name not in NATIVE and name != SOURCE, f"{name!r} is no quantizer's name"

    def test_listed_formats_are_installed(self) -> None:
        """Every format the declaration lists is provided by an installed plugin."""
        missing = []
        for name in self.declaration.formats:
            try:
                self.registry.get("quantizer", name)
            except PluginNotFound as error:
                missing.append(f"{name} ({error.hint.splitlines()[0]})")
        if missing:
            skip(f"not installed: {'; '.join(missing)}")

    def test_the_same_answers_every_time(self) -> None:
        """Answers depend on the tensor alone, not on what was asked before or by whom."""
        first = [self.made().format_for(t) for t in questions()]
        backwards = [self.made().format_for(t) for t in reversed(list(questions()))][::-1]
        second = self.load()()
        others = {"asked backwards": backwards, "a second object":
                  [second.format_for(t) for t in questions()]}  # fmt: skip
        for where, answers in others.items():
            self._same(answers, first, where)

    def test_the_same_answers_in_another_process(self) -> None:
        """Another process, whose strings hash differently, gives the same answers."""
        here = [self.made().format_for(t) for t in questions()]
        for seed in (1, 2):
            there = run_fresh(ANSWERS, self.declaration.target, hash_seed=seed)
            self._same(json.loads(there), here, "another process")

    def _same(self, found: list[str], expected: list[str], where: str) -> None:
        for tensor, one, other in zip(questions(), found, expected, strict=True):
            assert one == other, f"{where}: {_text(tensor)} gets {one!r}, before {other!r}"


def quant_classes() -> list[str]:
    """The classes of tensors a recipe is asked about, as the contract schema lists them."""
    listed = schema()["quantization_policy.*"].removeprefix("enum[").removesuffix("]")
    return [name for name in (part.strip() for part in listed.split(",")) if name != KEEP]


def questions() -> Iterator[TensorClass]:
    """Every class, shape and place in a model, in a role that no family has."""
    for name in quant_classes():
        for shape in SHAPES:
            for layer, layers in LAYERS:
                yield TensorClass(f"model.{name}.weight", f"kit_{name}", name, shape, layer, layers)


def answers_of(target: str) -> list[str]:
    """What the recipe of a declaration's "module:Attr" answers."""
    module, _, attribute = target.partition(":")
    recipe = getattr(import_module(module), attribute)()
    return [recipe.format_for(tensor) for tensor in questions()]


def _text(tensor: TensorClass) -> str:
    where = "" if tensor.layer is None else f" in layer {tensor.layer} of {tensor.num_layers}"
    return f"class {tensor.quant_class}, shape {list(tensor.shape)}{where},"
