"""The kit, and an oracle in torch: transformers' Qwen2 layers, connected as the decoder does."""

from __future__ import annotations

import numpy as np
import pytest

from apr_core import load
from apr_core.errors import ContractError
from apr_decoder_unet.family import UNetDemo
from apr_devkit.kits import FamilyConformance
from apr_devkit.tiny import tiny_apr


class TestUNetDemo(FamilyConformance):
    family = "unet_demo"


class TestDeepUntiedUNetDemo(FamilyConformance):
    family = "unet_demo"

    @property
    def tiny_config(self):
        deep = {"num_hidden_layers": 6, "tie_word_embeddings": False}
        return self.plugin_object.tiny_config() | deep


def test_logits_are_those_of_a_unet_of_qwen2_layers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file

    path = tiny_apr("unet_demo", tmp_path)
    tensors = load_file(tmp_path / "checkpoint" / "model.safetensors")
    hf = UNetDemo().tiny_config() | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    config = transformers.Qwen2Config(**hf, attn_implementation="eager")
    model = transformers.Qwen2Model(config).eval()
    state = {name.removeprefix("model."): value for name, value in tensors.items()}
    biases = {name: torch.zeros_like(v) for name, v in model.state_dict().items() if "bias" in name}
    model.load_state_dict(state | biases, strict=False)

    def norm(h, weight):
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * weight

    ids = torch.tensor([np.random.default_rng(0).integers(0, 320, 40).tolist()])
    positions = torch.arange(40)[None]
    mask = torch.full((40, 40), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        h, skips = norm(model.embed_tokens(ids), state["embed_norm.weight"]), []
        cos_sin = model.rotary_emb(h, positions)
        for n, layer in enumerate(model.layers):
            if n < len(model.layers) // 2:
                skips.append(h)
            else:
                h = h + norm(skips.pop(), state[f"layers.{n}.skip_layernorm.weight"])
            h = layer(h, attention_mask=mask, position_embeddings=cos_sin)
        expected = norm(h, state["norm.weight"]) @ state["embed_tokens.weight"].T
    with load(path, "cpu", strict=True) as ours:
        logits = ours.logits(ids[0].tolist())
    assert np.abs(logits - expected[0].numpy()).max() < 2e-4


def test_an_odd_number_of_layers_has_no_halves():
    with pytest.raises(ContractError, match="3 layers cannot be halved"):
        UNetDemo().config(UNetDemo().tiny_config() | {"num_hidden_layers": 3})
