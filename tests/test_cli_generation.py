"""What `apr run` and `apr chat` say on stderr when a model is loaded."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from apr_core.cli.generation import loaded
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
    said = capsys.readouterr().err
    assert "1 slow or large fallback on toy-device: -v shows them" in said
