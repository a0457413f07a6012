"""What tests of the engine share: a model of each family, and an engine that runs it."""

from __future__ import annotations

import pytest

from apr_core import load
from tests.engine.engine_rig import FAMILIES, by_hand, imported, running


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    with load(imported(request.param, tmp_path_factory.mktemp("engine")), threads=1) as model:
        yield model


@pytest.fixture
def engine(model):
    with running(model, slots=4, memory_bytes=64 << 20) as engine:
        yield engine


@pytest.fixture
def engine_by_hand(model):
    with running(model, by_hand, slots=3, memory_bytes=256 << 20) as engine:
        yield engine
