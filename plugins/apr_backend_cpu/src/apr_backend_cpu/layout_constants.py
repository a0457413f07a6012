"""Numbers of the kernels for declared layouts that Python shares with them."""

from __future__ import annotations

# Columns of a row of parameters, uint64. OFFSETS and LEVELS are addresses: of int64 [runs], where
# the codes of 32 values are in a row, and of 16 bytes.
OFFSETS, LEVELS, RUNS, GROUPS, BLOCKS, NUMBERS = range(6)
# of NUMBERS: the scales, then the minima; address 0 if there are none. Steps are bytes.
AT_NUMBERS, NUMBER_KIND, TILE_STEP, AT_FACTORS, FACTORS_STEP, BLOCK_STEP = range(6)
COLUMNS_OF_NUMBERS = 6
PARAMETERS = NUMBERS + 2 * COLUMNS_OF_NUMBERS
UNSIGNED, SIGNED, HALF, SINGLE = range(4)  # kinds of numbers
