"""Numbers that the kernels for declared layouts share with Python."""

from __future__ import annotations

# Columns of a row of parameters, uint64. OFFSETS is the address of int64 [runs]: where in a row
# the codes of each 32 values are; HIGH of as many, bytes from these to the fifth bits; LEVELS is
# the address of 16 bytes; ZERO, where codes are numbers, the code of 0 over 128, a float32's bits.
# DENSE is 1 where blocks of 32 are a float16 scale, any minimum, any fifth bits, and then codes.
OFFSETS, HIGH, LEVELS, ZERO, DENSE, RUNS, GROUPS, BLOCKS, NUMBERS = range(9)
# Columns of NUMBERS: the scales, then the minima; address 0 if there are none. Steps in bytes.
AT_NUMBERS, NUMBER_KIND, TILE_STEP, AT_FACTORS, FACTORS_STEP, BLOCK_STEP = range(6)
COLUMNS_OF_NUMBERS = 6
PARAMETERS = NUMBERS + 2 * COLUMNS_OF_NUMBERS
UNSIGNED, SIGNED, HALF, SINGLE, IN_PLACE = range(5)  # kinds of numbers
# Numbers in place are float16 in blocks of 32: AT_NUMBERS is the bytes from codes to the scale,
# TILE_STEP a factor as a float32's bits. A minimum follows its scale.
