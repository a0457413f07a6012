"""What is compiled at first use is compiled before a server says that it is ready."""

from __future__ import annotations

import pytest

from apr_core import load
from apr_serve.engine.warming import warm_up
from tests.serve import serving

pytestmark = pytest.mark.needs_plugins


@pytest.mark.parametrize("max_len", [16, None])
def test_warming_up_leaves_nothing_behind(max_len):
    with load(serving.demo_model(), max_len=max_len) as model:
        seen = []
        forward = model.forward_last
        model.forward_last = lambda parts: (
            seen.append([len(ids) for _, ids in parts]) or forward(parts)
        )
        warm_up(model)
        assert model.state_bytes() == 0
        assert seen[1:] == [[1], [1, 1]] and seen[0][0] > 1
