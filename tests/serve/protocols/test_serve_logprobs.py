"""Log probabilities: of the text that is shown and nothing else, streamed as whole."""

from __future__ import annotations

import pytest

from tests.serve.protocols.test_serve_openai import GREETING, HELLO, ask
from tests.serve.serving import openai_client, shared

pytestmark = pytest.mark.needs_plugins


@pytest.fixture(scope="module")
def server():
    return shared()


@pytest.fixture(scope="module")
def client():
    return openai_client()


def test_logprobs_are_of_the_text_shown(client):
    tokens = ask(client, HELLO, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert bytes(b for token in tokens for b in token.bytes).decode() == GREETING
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)  # greedy
        assert token.top_logprobs[0].token == token.token
    chunks = ask(client, HELLO, logprobs=True, stream=True)
    streamed = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert [t.token for t in streamed] == [t.token for t in tokens]
    assert ask(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


@pytest.mark.parametrize(
    ("stop", "expected"), [(" two", "Hello! I can add"), ("d two", "Hello! I can add")]
)
def test_logprobs_end_with_the_token_that_a_stop_string_cuts(client, stop, expected):
    choice = ask(client, HELLO, logprobs=True, stop=stop).choices[0]
    text = bytes(b for token in choice.logprobs.content for b in token.bytes).decode()
    assert text == expected and choice.message.content == GREETING.partition(stop)[0]


def test_logprobs_after_a_thought_begin_with_the_answer(client):
    thinks = {"thinking_budget": 2, "chat_template_kwargs": {"enable_thinking": True}}
    choice = ask(client, HELLO, logprobs=True, max_tokens=60, extra_body=thinks).choices[0]
    assert choice.message.reasoning_content and choice.message.content
    text = bytes(b for token in choice.logprobs.content for b in token.bytes).decode()
    assert text == choice.message.content


def test_plain_completions_keep_the_tags_of_thinking(client, server):
    (tag,) = server.post("/tokenize", {"text": "</think>", "allow_special": True}).json()["tokens"]
    prompt = "<|im_start|>assistant\n<think>\n"
    choice = client.completions.create(
        model="sums",
        prompt=prompt,
        max_tokens=3,
        logprobs=0,
        logit_bias={str(tag): 100},
        extra_body={"allow_special": True},
    ).choices[0]
    assert choice.text == "".join(choice.logprobs.tokens) == "</think>" * 3


@pytest.mark.parametrize("options", [{"temperature": 50}, {"temperature": 0, "prompt": "1+1="}])
def test_plain_completions_have_the_same_log_probabilities_streamed(client, options):
    whatever = {"ignore_eos": True, "skip_special_tokens": False}
    asked = {"model": "sums", "prompt": "Hello", "max_tokens": 40, "logprobs": 1, "seed": 2,
             "extra_body": whatever, **options}  # fmt: skip
    whole = client.completions.create(**asked).choices[0]
    chunks = [c.choices[0].logprobs for c in client.completions.create(**asked, stream=True)]
    for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs"):
        streamed = [value for chunk in chunks for value in getattr(chunk, name)]
        assert streamed == getattr(whole.logprobs, name)
    assert len(whole.logprobs.tokens) == 40
    for token, at in zip(whole.logprobs.tokens, whole.logprobs.text_offset, strict=True):
        assert token == "\ufffd" or whole.text.startswith(token, at)
