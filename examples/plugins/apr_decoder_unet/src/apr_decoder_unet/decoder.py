"""The decoder: layer i of the second half also gets what entered its mirror in the first."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from apr_core.plugin import Decoder, Plan, State, Step

Array = Any


class UNetDecoder(Decoder):
    """`h += norm(skip)` before each layer of the second half; the embedding is normed."""

    vectors = ("embedding_norm", "final_norm")

    @classmethod
    def layer_vectors(cls, plan: Plan, index: int) -> tuple[str, ...]:
        """Return the two norms of every layer, and the skip's in the second half."""
        second = index >= len(plan.blocks) // 2
        return (*super().layer_vectors(plan, index), *(("skip_norm",) if second else ()))

    def slices(self, ids: Array, step: Step, states: list[State]) -> Generator[None, None, Array]:
        """Return the normalised hidden states [T, hidden] of ids [T]."""
        o, skips = self.ops, []
        h = self.norm(self.embedded(ids), self.weights.embedding_norm)
        for index, layer in enumerate(self.layers):
            w = layer.weights
            if index < len(self.layers) // 2:
                skips.append(h)
            else:
                h = o.add(h, self.norm(skips.pop(), w.skip_norm))
            h = o.add(h, layer.mixer(o, w, self.norm(h, w.input_norm), step, states[index]))
            yield
            h = o.add(h, layer.mlp(o, w, self.norm(h, w.post_attention_norm)))
            yield
        return self.norm(h, self.weights.final_norm)
