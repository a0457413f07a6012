"""The example passes what every quantizer and every recipe passes."""

from __future__ import annotations

from apr_devkit.kits import QuantizerConformance, RecipeConformance


class TestNF4(QuantizerConformance):
    quantizer = "nf4"


class TestRecipe(RecipeConformance):
    recipe = "nf4"
