"""What `apr run` and `apr chat` read and say before they answer."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from apr_core import AprFile, load
from apr_core.cli.generation import loaded, whole_prompt
from apr_core.errors import FormatError, NotFound, UsageError
from apr_core.model import model as model_module


class Slow(nullcontext):
    """A model some of whose ops run on references."""

    backend = SimpleNamespace(name="toy-device")
    report = SimpleNamespace(fallbacks=["attention runs on the reference"], lines=list)


@pytest.mark.parametrize("asked", [None, "toy-device"])
def test_a_fallback_is_said_with_the_backend_that_was_chosen(monkeypatch, capsys, asked):
    monkeypatch.setattr(model_module, "load", lambda *args, **kwargs: Slow())
    options = {"backend": asked, "threads": None, "context": None, "kv_type": None}
    with loaded("x.apr", {**options, "strict": False, "verbose": False}):
        pass
    message = capsys.readouterr().err
    assert "1 slow or large fallback on toy-device: -v shows them" in message


def test_what_has_to_be_imported_first_is_said_so():
    with pytest.raises(NotFound, match="no such file") as refused:
        load("demo://sums")
    assert "`find_model`" in refused.value.hint


def test_a_checkpoint_is_no_file(tmp_path):
    with pytest.raises(FormatError, match="is a directory") as refused:
        AprFile.open(tmp_path)
    assert f"apr import {tmp_path}" in refused.value.hint


PIPES = [  # PROMPT, what is piped in, the prompt that is read
    ("Say it:", "a\nb\n", "a\nb\n\nSay it:"), (None, "hello\n", "hello"), ("-", "x", "x"),
    ("hi", "", "hi"), ("hi", None, "hi"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "piped", "read"), PIPES)
def test_what_is_piped_in_comes_before_the_prompt(monkeypatch, tmp_path, prompt, piped, read):
    path = tmp_path / "piped"
    path.write_text(piped or "")
    with (path if piped is not None else Path(os.devnull)).open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert whole_prompt(prompt) == read


def test_without_any_prompt_there_is_nothing_to_answer(monkeypatch):
    with Path(os.devnull).open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(UsageError, match="the prompt is empty"):
            whole_prompt(None)
