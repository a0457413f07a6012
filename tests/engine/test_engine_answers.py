"""What the engine makes of one request: the same as alone, how it ends, what is told of tokens."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from apr_core.errors import UsageError
from apr_core.generate.sampling import SamplingParams
from apr_serve.engine.engine import Engine
from apr_serve.engine.interface import EngineRequest
from apr_serve.engine.sequence import AnswerSequence
from tests.engine.engine_rig import (
    ENDLESS,
    Client,
    ask,
    assert_nothing_left,
    by_hand,
    chat,
    random_ids,
    running,
)

pytestmark = pytest.mark.needs_plugins

GREEDY = SamplingParams()


def test_greedy_answers_are_those_of_the_plain_loop(model, engine):
    for ids in (random_ids(1), random_ids(70), random_ids(700), chat(model, "hi", "ho", "hum")):
        alone = model.generate(ids, params=GREEDY, max_tokens=20)
        client = ask(engine, ids, max_tokens=20)
        assert (client.ids(), client.text()) == (alone.ids, alone.text)
        assert client.last().finish_reason == alone.finish_reason
        assert client.last().usage.prompt_tokens == len(ids)
        assert client.last().usage.completion_tokens == len(alone.ids)


def test_seeds_draw_the_same_as_the_plain_loop_and_answers_differ(model, engine):
    params = SamplingParams(temperature=2.0, seed=7)
    client = ask(engine, random_ids(30), params, max_tokens=12, n=3)
    for index in range(3):
        again = SamplingParams(temperature=2.0, seed=7 + index)
        alone = model.generate(random_ids(30), params=again, max_tokens=12)
        assert client.ids(index) == alone.ids
    assert len({tuple(client.ids(index)) for index in range(3)}) == 3


def test_answers_without_a_seed_differ(engine):
    params = SamplingParams(temperature=2.0)
    client = ask(engine, random_ids(30), params, max_tokens=12, n=2)
    assert client.ids(0) != client.ids(1)


def test_logprobs_are_those_of_the_raw_logits(model, engine):
    ids = random_ids(40)
    params = SamplingParams(temperature=0.7, top_k=5, presence_penalty=1.0, seed=3)
    client = ask(engine, ids, params, max_tokens=8, top_logprobs=4)
    probabilities = [lp for d in client.answer() for lp in d.logprobs]
    assert [lp.id for lp in probabilities] == client.ids()
    rows = model.logits([*ids, *client.ids()])[len(ids) - 1 : -1, : model.tokenizer.valid_size]
    rows = rows.astype(np.float64)
    expected = rows - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True))
    expected -= rows.max(1, keepdims=True)
    for lp, row in zip(probabilities, expected, strict=True):
        assert lp.logprob == pytest.approx(row[lp.id], abs=3e-7)
        assert [i for i, _ in lp.top] == np.argsort(-row, kind="stable")[:4].tolist()
        np.testing.assert_allclose([p for _, p in lp.top], np.sort(row)[::-1][:4], atol=3e-7)


def test_no_logprobs_unless_asked_and_zero_means_the_chosen_ones(engine):
    assert not any(d.logprobs for d in ask(engine, random_ids(9), max_tokens=4).answer())
    probabilities = [
        lp
        for d in ask(engine, random_ids(9), max_tokens=4, top_logprobs=0).answer()
        for lp in d.logprobs
    ]
    assert len(probabilities) == 4 and not any(lp.top for lp in probabilities)


def test_deltas_joined_have_every_id_and_whole_characters(model, engine):
    params = SamplingParams(temperature=3.0, seed=1)
    client = ask(engine, random_ids(20), params, max_tokens=200, detect_repetition=False)
    alone = model.generate(random_ids(20), params=params, max_tokens=200)
    assert client.ids() == alone.ids and client.text() == alone.text
    assert client.last().usage.completion_tokens == len(client.ids())


def test_the_context_ends_an_answer(model, engine):
    client = ask(engine, random_ids(model.max_len - 5), ignore_stop_tokens=True)
    assert len(client.ids()) == 5
    assert (client.last().finish_reason, client.last().ended_by) == ("length", "context")


def test_what_can_never_run_is_refused_with_the_numbers(model):
    engine = Engine(model, slots=2, memory_bytes=1 << 20)
    try:
        for ids, options, words in (
            ([], {}, "empty"),
            ([5], {"n": 3}, "between 1 and 2"),
            ([5, 512], {}, "512 is outside the vocabulary of 512"),
            ([-1], {}, "-1 is outside"),
            ([5], {"max_tokens": 0}, "max_tokens"),
            (random_ids(model.max_len), {}, "context holds 1024"),
            (random_ids(900), {"n": 2, "max_tokens": 100}, r"2 x 999 tokens need \d+ MiB .* 1 MiB"),
        ):
            with pytest.raises(UsageError, match=words):
                engine.submit(EngineRequest(ids, **options), lambda deltas: None)
        assert_nothing_left(engine)
    finally:
        engine.close()


def test_an_answer_without_a_length_gets_what_its_share_of_memory_holds(model, monkeypatch):
    monkeypatch.setattr("apr_serve.engine.engine.LEAST_ANSWER", 64)
    for share, expected in ((1024, 1014), (512, 503)):
        memory = 2 * model.sequence_bytes(share)
        with running(model, by_hand, slots=2, memory_bytes=memory, cache_bytes=0) as engine:
            client = ask(engine, random_ids(10), **ENDLESS)
            assert (len(client.ids()), client.last().ended_by) == (expected, "context")


@pytest.mark.parametrize("n", [1, 2])
def test_an_answer_without_a_length_gets_what_there_is_where_memory_is_tiny(model, n):
    with running(model, by_hand, slots=2, memory_bytes=n * model.sequence_bytes(256)) as engine:
        client = ask(engine, random_ids(100), n=n, **ENDLESS)
        for index in range(n):
            assert 156 < len(client.ids(index)) <= model.max_len - 100


def test_answers_without_a_length_leave_room_for_prefixes(model, monkeypatch):
    monkeypatch.setattr("apr_serve.engine.engine.LEAST_ANSWER", 64)
    ids = chat(model, "a" * 100, "b", "c")
    with running(model, by_hand, slots=2, memory_bytes=2 * model.sequence_bytes(1024)) as engine:
        ask(engine, ids, max_tokens=1)
        for client in [Client(engine, random_ids(5), **ENDLESS) for _ in range(2)]:
            client.wait()
        assert ask(engine, ids, max_tokens=1).last().usage.cached_tokens > 100


def test_embeddings_are_the_mean_of_the_last_hidden_states(model, engine):
    results, came = [], threading.Event()
    ids = random_ids(600)
    engine.embed(ids, lambda result: (results.append(result), came.set()))
    assert came.wait(60)
    slot = model.new_slot()
    slices = model.forward_slices([(slot, ids)], hidden=True)
    try:
        while True:
            next(slices)
    except StopIteration as end:
        hidden = end.value
    model.free_slot(slot)
    assert hidden.shape == (600, model.config.hidden_size)
    np.testing.assert_allclose(results[0], hidden.mean(0, dtype=np.float64), rtol=1e-6, atol=1e-7)


class Scripted:
    """Feeds an answer logits that say what it shall choose."""

    def __init__(self, model, says, prompt="hi", constraint=None, limit=10_000, **options):
        tokenizer = model.tokenizer
        self.says = tokenizer.encode(says, allow_special=True)
        request = EngineRequest(tokenizer.encode(prompt, allow_special=True), **options)
        self.answer = AnswerSequence(
            model, request, 0, slot=0, limit=limit, limit_reason="max_tokens", constraint=constraint
        )
        self.fed = []

    def feed(self, token):
        row = np.zeros(512, np.float32)
        row[token] = 9.0
        self.answer.advance(row)
        self.fed.append(self.answer.token)

    def run(self):
        """Say everything; what is forced comes in between. The last token is said to the end."""
        says = list(self.says)
        while not self.answer.ended:
            self.feed(says[0])
            if self.answer.token == says[0] and len(says) > 1:
                del says[0]
        return self

    def text(self, channel):
        return "".join(d.text for d in self.answer.deltas if d.channel == channel)


THINKS = "<|im_start|>assistant\n<think>\n"


def test_a_thinking_budget_closes_the_thought_properly(model):
    run = Scripted(
        model, "abcdefgh", THINKS, thinking_budget=3, budget_text=" Enough.\n", limit=40
    ).run()
    assert run.text("reasoning") == "abc Enough.\n"
    assert run.text("text").startswith("defgh")
    fed = model.tokenizer.decode(run.fed)
    assert fed.startswith("abc Enough.\n</think>\n\ndefgh")
    last = run.answer.deltas[-1]
    assert last.usage.reasoning_tokens == 3 + len(" Enough.\n") + 1
    assert last.usage.completion_tokens == 40 == sum(len(d.ids) for d in run.answer.deltas)


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5])
def test_a_thinking_budget_splits_no_character(model, budget):
    """The tokens of this model are bytes: a snowman has three of them."""
    run = Scripted(model, "a☃bcdefgh", THINKS, thinking_budget=budget, limit=40).run()
    assert run.text("reasoning") == {1: "a", 5: "a☃b"}.get(budget, "a☃")
    assert "\ufffd" not in run.text("text")


def test_a_thinking_budget_waits_for_no_character_that_never_ends(model):
    run = Scripted(model, "a", THINKS, thinking_budget=3, limit=60)
    begun = model.tokenizer.encode("☃")[0]
    for _ in range(20):
        run.feed(begun)
    assert run.answer.end_think in run.fed


def test_a_budget_of_nothing_and_one_that_is_not_reached(model):
    none = Scripted(model, "xy<|im_end|>", THINKS, thinking_budget=0, budget_text="No.").run()
    assert (none.text("reasoning"), none.text("text")) == ("No.", "xy")
    short = Scripted(
        model, "a</think>\n\nb<|im_end|>", THINKS, thinking_budget=9, budget_text="No."
    ).run()
    assert (short.text("reasoning"), short.text("text")) == ("a", "b")
    plain = Scripted(model, "ab<|im_end|>", thinking_budget=0, budget_text="No.").run()
    assert (plain.text("reasoning"), plain.text("text")) == ("", "ab")


def test_a_second_closing_tag_is_text(model):
    run = Scripted(model, "a</think>b</think>c<|im_end|>", THINKS).run()
    assert (run.text("reasoning"), run.text("text")) == ("a", "b</think>c")


@pytest.mark.parametrize("says", ["one STOP two", "one STOP"])
def test_stop_strings_over_token_borders(model, says):
    run = Scripted(model, says, stop=("STOP", "unused")).run()
    last = run.answer.deltas[-1]
    assert run.text("text") == "one "
    assert (last.finish_reason, last.ended_by, last.stop_string) == ("stop", "stop_string", "STOP")
    assert sum(len(d.ids) for d in run.answer.deltas) == len("one STOP")


def test_a_stop_string_that_does_not_come_true_is_shown_at_the_end(model):
    run = Scripted(model, "one STO<|im_end|>", stop=("STOP",)).run()
    assert run.text("text") == "one STO"
    assert run.answer.deltas[-1].ended_by == "stop_token"


def test_stop_tokens_can_be_ignored(model):
    options = {"limit": 3, "ignore_stop_tokens": True}
    run = Scripted(model, "a<|im_end|>b", **options, skip_special_tokens=False).run()
    assert run.text("text") == "a<|im_end|>b"
    assert Scripted(model, "a<|im_end|>b", **options).run().text("text") == "ab"
    assert run.answer.deltas[-1].ended_by == "max_tokens"


class OnlyDigits:
    """A constraint of three digits."""

    def __init__(self):
        self.accepted = []

    def mask(self, scores):
        allowed = np.isin(np.arange(scores.size), [scores.size] if self.complete else range(256))
        scores[~allowed] = -np.inf
        scores[[i for i in range(256) if i not in DIGITS]] = -np.inf
        return scores

    def accept(self, token):
        self.accepted.append(token)

    @property
    def complete(self):
        return len(self.accepted) == 3


DIGITS: set[int] = set()


@pytest.fixture(autouse=True)
def digits(model):
    DIGITS.update(model.tokenizer.encode("0123456789"))


def test_a_constraint_applies_after_the_thought_and_ends_the_answer(model):
    constraint = OnlyDigits()
    run = Scripted(model, "ab</think>", THINKS, constraint=constraint)
    for token in run.says:
        run.feed(token)
    assert not constraint.accepted
    row = np.zeros(512, np.float32)
    row[model.tokenizer.encode("x")[0]] = 9.0  # not allowed
    row[model.tokenizer.encode("7")[0]] = 1.0
    while not run.answer.ended:
        run.answer.advance(row)
    last = run.answer.deltas[-1]
    assert (run.text("reasoning"), run.text("text")) == ("ab", "777")
    assert (last.finish_reason, last.ended_by) == ("stop", "grammar")
    assert row.max() == 9.0, "the logits are left as they are"


def test_who_stops_in_a_thought_still_owes_the_constrained_answer(model):
    constraint = OnlyDigits()
    run = Scripted(model, "ab<|im_end|>", THINKS, constraint=constraint)
    run.run()
    assert run.text("reasoning") == "ab"
    assert run.text("text").isdigit() and len(constraint.accepted) == 3


def test_a_constraint_without_a_thought_applies_from_the_start(model):
    run = Scripted(model, "123", constraint=OnlyDigits()).run()
    assert run.text("text") == "123" and run.answer.deltas[-1].ended_by == "grammar"


def test_a_constraint_that_allows_nothing_is_an_error_of_its_answer(model):
    class Nothing(OnlyDigits):
        def mask(self, scores):
            return np.full_like(scores, -np.inf)

    run = Scripted(model, "a", constraint=Nothing()).run()
    last = run.answer.deltas[-1]
    assert last.finish_reason == "error" and "allows no token" in str(last.error)
