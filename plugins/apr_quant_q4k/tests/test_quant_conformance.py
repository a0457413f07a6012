"""The kits that every quantizer and every recipe passes."""

from __future__ import annotations

from apr_devkit.kits import QuantizerConformance, RecipeConformance


class TestQ4K(QuantizerConformance):
    quantizer = "q4_k"
    golden = "059d79c470a24b29e8b156a5cdccab27e634b082b2c9b16acd62c3d876db76a3"


class TestQ5K(QuantizerConformance):
    quantizer = "q5_k"
    golden = "be42c6d229da41e645ef929a06d4714507257b47fa99cf4429e3e20af782061f"


class TestQ6K(QuantizerConformance):
    quantizer = "q6_k"
    golden = "ac545f68100fd0a7198fab71d31a4f81ae175648d338d4bc024f69f583d8e803"


class TestQ80(QuantizerConformance):
    quantizer = "q8_0"
    golden = "0d1935f72efd7bd05ede24ec1c5efd701848c738fcd64b89e2accd4e13e4609e"


class TestQ40(QuantizerConformance):
    quantizer = "q4_0"


class TestQ41(QuantizerConformance):
    quantizer = "q4_1"


class TestQ50(QuantizerConformance):
    quantizer = "q5_0"


class TestQ51(QuantizerConformance):
    quantizer = "q5_1"


class TestIQ4NL(QuantizerConformance):
    quantizer = "iq4_nl"


class TestRecipeQ4k(RecipeConformance):
    recipe = "q4k"


class TestRecipeQ4KM(RecipeConformance):
    recipe = "q4_k_m"


class TestRecipeQ6k(RecipeConformance):
    recipe = "q6k"


class TestRecipeQ80(RecipeConformance):
    recipe = "q8_0"


class TestRecipeF16(RecipeConformance):
    recipe = "f16"


class TestRecipeBF16(RecipeConformance):
    recipe = "bf16"


class TestRecipeF32(RecipeConformance):
    recipe = "f32"
