"""Numbers that the kernels and the Python that calls them share: sizes, offsets, columns of tables.

Sizes and offsets are bytes, columns count words of 8 bytes.
"""

from __future__ import annotations

LANES = 16  # of a vector of 32-bit numbers in kernels
VECTOR = 4 * LANES
CACHE_LINE = 64

# Activations for packed weights: a record of 1024 bytes for each 256 values (kernels/linear/
# activations.py says what they mean).
SUPERBLOCK, GROUP = 256, 32
RECORD = 1024
# After a row's records: rows that lie a multiple of 1024 bytes apart meet in few lines of the cache
ROW_GAP = 5 * CACHE_LINE
AT_Q = 0  # 256 int8
AT_SUM16 = 256  # 16 int16: s_j times the sum of 16 values
AT_SUM32 = 288  # 8 int16: s_j times the sum of 32 values
AT_STEP = 304  # 8 int16: s_j
AT_STEP_PAIR = 320  # 8 times s_j twice, int16
AT_STEP32 = 352  # 8 int32: s_j
AT_CROSS = 384  # 8 float32: of 32 values, see kernels/linear/crossed.py
AT_SHIFT32 = 416  # 8 int32: -128 times the sum of 32 values
AT_GROUP_D, AT_D = 448, 480  # 8 float32: d * s_j; then d
AT_Q16 = 512  # 256 int16: the codes again

# Products. A tile is 16 weight rows.
ROWS = 16
FEW = 17  # rows of activations from which unpacking a tile pays
SIDE_BY_SIDE = 4  # tiles that are unpacked together
TOKENS = 24  # rows of activations that meet an unpacked tile in a call
TILE_SUPERBLOCK = 5824  # of a superblock of an unpacked tile whose scales are integers
# of 32 values of an unpacked tile whose scales are floating point, codes being bytes or int16
TILE_GROUP, TILE_GROUP_WIDE = 640, 1216
ROW_ROOM = VECTOR * ROWS  # of a superblock of 16 rows that meet one row of activations
# Columns of a table of parts. A part is a matrix up to a whole number of tiles, or what is left of
# it, copied into room for 16 rows. Results of a matrix are [tokens, rows], one by one. METHODS is
# the address of a format's functions, PARAMETERS that of a declared layout's tables.
(FIRST_TILE, ADDRESS, ROW_BYTES, PART_ROWS, METHODS, BEFORE, FIRST_ROW, ALL_ROWS, PARAMETERS,
 BIAS) = range(10)  # fmt: skip
PART_COLUMNS = 10
# Columns of a format's methods: what kind of format it is, the values of a block, the bytes of an
# unpacked one, then addresses of functions.
KIND, BLOCK, TILE_BYTES, ONE, FEW_2, FEW_4, FEW_6, FEW_8, UNPACK, MANY = range(10)
METHOD_COLUMNS = 10
# kinds; ARRANGED are declared layouts that meet activations in another order
PACKED, DECLARED, ARRANGED, DENSE = range(4)

# Attention
PART = 256  # positions; caches have room for whole parts
# Columns of what a kind of cache has: which it is, bytes of a value, and addresses of functions: of
# one query and then of up to 4, of these those of 16 dims and of 64.
F32, F16, Q8 = range(3)
CACHE_KIND, ITEM, APPEND, SCORES, MIX, WEIGH, UNPACK_KEYS, WIDEN = 0, 1, 2, 3, 5, 9, 11, 12
CACHE_COLUMNS = 13
# columns of a table of segments, and of a table of single tokens
START, STOP, KEYS_AT, VALUES_AT, CAPACITY, POSITION, FIRST_PART = range(7)
SEGMENT = 7

# Recurrent ops
CHANNELS = 256  # of a convolution task
NARROW = 32  # columns of a state that are worked on together
STATE = 2  # column of a table of segments: START, STOP, address of a state

# Programs: columns of an instruction, and the control block of a team, in cache lines
FUNCTION, TASKS, ARGUMENTS = range(3)
COLUMNS = 3
LINE = 8  # words
(GENERATION, PROGRAM, SIZE, MET, PHASE, THREADS, BEFORE_PHASE, SCRATCH, PARKED) = (
    LINE * i for i in range(9)
)
