"""Generation over a scripted model: channels, stops, limits, and slots that are always freed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from apr_core.cli.generation import Printer, collect
from apr_core.errors import AprError, UsageError
from apr_core.generate.deltas import Delta
from apr_core.generate.generate import Generation, Timings, generate, stream
from apr_core.model.step import LastLogits
from apr_core.runtime import ReferenceBackend
from tests.model.test_text import make_tokenizer
from tests.tokenizers_of import tokenizer_of


class Scripted:
    """A model that says what it was told to, one token a forward."""

    def __init__(self, tokenizer, says, max_len=1000, stop_ids=(), sampling=None):
        self.tokenizer, self.max_len = tokenizer, max_len
        self.says = tokenizer.encode(says, allow_special=True) if isinstance(says, str) else says
        self.config = SimpleNamespace(stop_ids=stop_ids, sampling=sampling or {})
        self.open: dict[int, int] = {}
        self.forwards: list[int] = []
        self.position = 0

    def new_slot(self):
        self.open[7] = 0
        return 7

    def free_slot(self, slot):
        del self.open[slot]

    def check_ids(self, ids):
        assert all(0 <= id_ < self.tokenizer.vocab_size for id_ in ids)

    def forward_last(self, parts):
        return LastLogits(ReferenceBackend(), self.forward(parts))

    def forward(self, parts):
        ((slot, ids),) = parts
        self.open[slot] += len(ids)
        assert self.open[slot] <= self.max_len
        self.forwards.append(len(ids))
        logits = np.zeros((1, self.tokenizer.vocab_size + 8), np.float32)
        logits[0, -1] = 99.0  # a padding row, which must never be chosen
        if self.open[slot] >= self.prompt:
            token = self.says[self.position] if self.position < len(self.says) else 0
            logits[0, token] = 9.0 if token >= 0 else np.nan
            self.position += 1
        return logits

    def ask(self, prompt="hello", **options):
        ids = self.tokenizer.encode(prompt, allow_special=True)
        self.prompt = len(ids)
        return generate(self, ids, **options)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(directory)
    return tokenizer_of(directory)


def test_the_answer_ends_at_a_stop_id_of_model_or_tokenizer(tokenizer):
    model = Scripted(tokenizer, "ภาษา and 👍🏽<|im_end|>never")
    result = model.ask()
    assert (result.text, result.reasoning, result.finish_reason) == ("ภาษา and 👍🏽", "", "stop")
    assert result.ids[-1] == tokenizer.token_id("<|im_end|>")
    assert result.timings.tokens == len(result.ids) and not model.open
    other = tokenizer.token_id("<|endoftext|>")
    assert Scripted(tokenizer, "a<|endoftext|>b", stop_ids=(other,)).ask().text == "a"


def test_reasoning_and_answer_are_apart(tokenizer):
    says = "let me see\n</think>\n\nfour</think>!<|im_end|>"
    result = Scripted(tokenizer, says).ask("<|im_start|>assistant\n<think>\n")
    assert result.reasoning == "let me see\n"
    assert result.text == "four</think>!"  # a second closing tag is text
    opened = Scripted(tokenizer, "<think>\nx</think>y<|im_end|>").ask("hi")
    assert (opened.reasoning, opened.text) == ("x", "y")
    closed = Scripted(tokenizer, "y<|im_end|>").ask("<think>\n\n</think>\n\n")
    assert (closed.reasoning, closed.text) == ("", "y")


def test_pieces_hold_every_id_once_and_one_reason(tokenizer):
    model = Scripted(tokenizer, "one <think>two</think>\n\nthree 👍🏽 four<|im_end|>")
    model.prompt = 1
    pieces = list(stream(model, [65], stop=["nothing"]))
    assert [i for p in pieces for i in p.ids] == model.says
    assert [p.finish_reason for p in pieces if p.finish_reason] == ["stop"]
    assert not any("\ufffd" in p.text for p in pieces)


@pytest.mark.parametrize("says", ["one two STOP three", "one two STOP"])
def test_stop_strings(tokenizer, says):
    model = Scripted(tokenizer, says + "<|im_end|>")
    result = model.ask(stop=["STOP"])
    assert (result.text, result.finish_reason) == ("one two ", "stop")
    assert not model.open
    assert Scripted(tokenizer, "one two ST<|im_end|>").ask(stop=["STOP"]).text == "one two ST"
    assert Scripted(tokenizer, says + "<|im_end|>").ask(stop="STOP").text == result.text


def test_text_that_repeats_itself_without_end_is_ended(tokenizer):
    says = tokenizer.encode("a b c d. ") * 400

    def ask(**options):
        return Scripted(tokenizer, says, max_len=9000).ask(max_tokens=len(says), **options)

    ended = ask()
    assert (ended.finish_reason, ended.ended_by) == ("length", "repetition")
    assert len(ended.ids) < len(says)
    whole = ask(detect_repetition=False)
    assert whole.ended_by == "max_tokens" and len(whole.ids) == len(says)


def test_max_tokens_and_the_end_of_the_context(tokenizer):
    model = Scripted(tokenizer, [65] * 50)
    result = model.ask("x", max_tokens=5)
    assert (len(result.ids), result.finish_reason) == (5, "length")
    assert result.ended_by == "max_tokens"
    assert len(model.forwards) == 5  # the last token needs no forward
    small = Scripted(tokenizer, [65] * 50, max_len=8)
    result = small.ask("x")
    assert (len(result.ids), result.finish_reason, result.ended_by) == (7, "length", "context")


def test_a_character_cut_by_the_limit_is_shown_as_broken(tokenizer):
    first, *_ = tokenizer.encode("\U00010348")
    assert Scripted(tokenizer, [first]).ask(max_tokens=1).text == "\ufffd"


def test_prompts_are_fed_in_chunks(tokenizer):
    model = Scripted(tokenizer, "a<|im_end|>")
    model.prompt = 150
    timings = Timings()
    list(stream(model, [65] * 150, chunk=64, timings=timings))
    assert model.forwards == [64, 64, 22, 1]
    assert (timings.prompt_tokens, timings.tokens) == (150, 2)


def test_refusals(tokenizer):
    model = Scripted(tokenizer, "a", max_len=10)
    for ids, options, words in (
        ([], {}, "empty"),
        ([65] * 11, {}, "prompt has 11 tokens, the context holds 10"),
        ([65] * 10, {}, "context holds 10"),
        ([65], {"max_tokens": 0}, "max_tokens"),
        ([65], {"chunk": 100}, "multiple of 64"),
    ):
        with pytest.raises(UsageError, match=words):
            generate(model, ids, **options)
    assert not model.open and not model.forwards


def test_the_slot_is_freed_whatever_happens(tokenizer):
    model = Scripted(tokenizer, [-1])
    model.says = [-1]
    model.forward = lambda parts: np.full((1, 700), np.nan, np.float32)
    with pytest.raises(AprError, match="not finite"):
        model.ask()
    assert not model.open
    model = Scripted(tokenizer, [65] * 50)
    model.prompt = 1
    pieces = stream(model, [65])
    next(pieces)
    assert model.open
    pieces.close()
    assert not model.open


def test_an_interrupted_display_frees_the_slot_and_keeps_what_was_shown(tokenizer):
    model = Scripted(tokenizer, "one two three")
    model.prompt, result = 1, Generation()
    pieces = stream(model, [65])

    def show(piece):
        if result.text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(pieces, result, show)
    assert result.text and not model.open


def test_sampling_defaults_come_from_the_model(tokenizer):
    logits = np.zeros((1, tokenizer.vocab_size), np.float32)
    answers = set()
    for _ in range(10):
        model = Scripted(tokenizer, [], sampling={"temperature": 1.0})
        model.forward = lambda parts: logits
        answers.add(tuple(model.ask(max_tokens=4).ids))
    assert len(answers) > 1
    greedy = Scripted(tokenizer, [])
    greedy.forward = lambda parts: logits
    assert greedy.ask(max_tokens=4).ids == [0] * 4


def test_a_pipe_gets_the_answer_alone(capsys):
    printer = Printer()
    for text, channel in (("hmm", "reasoning"), ("a\x1b[2J", "text"), ("b", "text")):
        printer.show(Delta(0, text, channel))
    printer.end()
    shown = capsys.readouterr()
    assert shown.out == "a\x1b[2Jb\n" and "hmm" in shown.err


def test_a_terminal_gets_no_control_characters(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    printer = Printer()
    printer.show(Delta(0, "hmm\x1b]52;c;x\x07", "reasoning"))
    printer.show(Delta(0, "a\x1b[2J\n\tb", "text"))
    shown = capsys.readouterr().out
    assert "a\ufffd[2J\n\tb" in shown and "\x1b]" not in shown and "\x07" not in shown
