"""The codecs: the facts of each format, available before encoding or decoding.

Each format's compiled loops are in the module of its name, which is imported at first use.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import Inputs
from apr_quant_q4k.codec import BlockCodec

HALF = 65504.0  # the largest float16


class Q4K(BlockCodec):
    """The codec of q4_k."""

    name, block, nbytes = "q4_k", 256, 144
    max_error = 0.09
    smallest, largest = -63 * HALF, 63 * HALF * 15  # dmin * mn, d * sc * q


class Q5K(BlockCodec):
    """The codec of q5_k."""

    name, block, nbytes = "q5_k", 256, 176
    max_error = 0.045
    smallest, largest = -63 * HALF, 63 * HALF * 31


class Q6K(BlockCodec):
    """The codec of q6_k."""

    name, block, nbytes = "q6_k", 256, 210
    max_error = 0.029
    smallest, largest = -126 * 32 * HALF, 126 * 32 * HALF


class Q8_0(BlockCodec):
    """The codec of q8_0."""

    name, block, nbytes = "q8_0", 32, 34
    max_error = 0.0097
    smallest, largest = -127 * HALF, 127 * HALF

    def encode_for(self, rows: NDArray[np.float32], inputs: Inputs) -> NDArray[np.uint8]:
        """Encode as `encode`: there is little error to hand on, and the step is the largest's."""
        return self.encode(rows)


class SmallBlocks(BlockCodec):
    """A codec of blocks of 32 with a step, and a minimum or none."""

    block, loops = 32, "small_blocks"


class Q4_0(SmallBlocks):
    """The codec of q4_0."""

    name, nbytes, kind = "q4_0", 18, (0, 15)
    max_error = 0.125
    smallest, largest = -8 * HALF, 8 * HALF


class Q4_1(SmallBlocks):
    """The codec of q4_1."""

    name, nbytes, kind = "q4_1", 20, (1, 15)
    max_error = 0.09
    smallest, largest = -HALF, HALF


class Q5_0(SmallBlocks):
    """The codec of q5_0."""

    name, nbytes, kind = "q5_0", 22, (0, 31)
    max_error = 0.073
    smallest, largest = -16 * HALF, 16 * HALF


class Q5_1(SmallBlocks):
    """The codec of q5_1."""

    name, nbytes, kind = "q5_1", 24, (1, 31)
    max_error = 0.045
    smallest, largest = -HALF, HALF


class IQ4_NL(SmallBlocks):
    """The codec of iq4_nl."""

    name, nbytes, kind = "iq4_nl", 18, (2, 15)
    max_error = 0.103
    smallest, largest = -113 * HALF, 113 * HALF
