"""The example passes what every quantizer and every recipe passes."""

from __future__ import annotations

from apr_devkit.kits import QuantizerConformance, RecipeConformance


class TestNF4(QuantizerConformance):
    quantizer = "nf4"
    max_error = {
        "gaussian": 0.085, "laplace": 0.097, "outliers": 0.135, "uniform": 0.083, "sparse": 0.057,
    }  # fmt: skip


class TestRecipe(RecipeConformance):
    recipe = "nf4"
