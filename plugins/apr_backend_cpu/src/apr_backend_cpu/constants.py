"""Numbers shared by kernels and the Python that calls them: sizes, offsets, table columns.

Sizes and offsets are in bytes; columns are words of 8 bytes.
"""

from __future__ import annotations

LANES = 16  # 32-bit numbers in a kernel's vector
VECTOR = 4 * LANES
CACHE_LINE = 64

# Activations for packed weights: a record of 1024 bytes for each 256 values (kernels/linear/
# activations.py says what they mean).
SUPERBLOCK, GROUP = 256, 32
RECORD = 1024
# Gap after a row's records: rows a multiple of 1024 bytes apart share few cache lines.
ROW_GAP = 5 * CACHE_LINE
AT_Q = 0  # 256 int8
AT_SUM16 = 256  # 16 int16: s_j times the sum of 16 values
AT_SUM32 = 288  # 8 int16: s_j times the sum of 32 values
AT_STEP = 304  # 8 int16: s_j
AT_STEP_PAIR = 320  # 8 pairs of int16: s_j twice
AT_STEP32 = 352  # 8 int32: s_j
# 8 float32, one per 32 values: see kernels/linear/crossed.py; at levels without these, 8 int32, the
# same as at AT_SHIFT32
AT_CROSS = AT_SHIFT = 384
AT_SHIFT32 = 416  # 8 float32: -128 times the sum of 32 values
AT_GROUP_D, AT_D = 448, 480  # 8 float32: d * s_j; then d
AT_Q16 = 512  # 256 int16: the codes at AT_Q, widened

# Products. A tile is 16 weight rows.
ROWS = 16
FEW = 17  # from this many rows of activations, unpacking a tile pays
SIDE_BY_SIDE = 4  # tiles that are unpacked together
TOKENS = 24  # rows of activations multiplied by an unpacked tile in a call
TILE_SUPERBLOCK = 5824  # bytes of a superblock in an unpacked tile with integer scales
# bytes of 32 columns in an unpacked tile with floating-point scales; codes are bytes or int16, or
# bytes that come with the code of 0
TILE_GROUP, TILE_GROUP_WIDE, TILE_GROUP_ZERO = 640, 1216, 704
ROW_WORKSPACE = VECTOR * ROWS  # bytes per superblock: 16 weight rows times one row of activations
# Columns of a table of parts. A part is the whole tiles of a matrix, or its remaining rows
# copied into a buffer of 16 rows. Results are [tokens, rows], one matrix after another. METHODS is
# the address of a format's functions, PARAMETERS that of a declared layout's tables.
(
    FIRST_TILE,
    ADDRESS,
    ROW_BYTES,
    PART_ROWS,
    METHODS,
    BEFORE,
    FIRST_ROW,
    ALL_ROWS,
    PARAMETERS,
    BIAS,
) = range(10)
PART_COLUMNS = 10
# Columns of a format's methods: the kind of format, the values in a block, the bytes of an
# unpacked block, then addresses of functions.
KIND, BLOCK, TILE_BYTES, ONE, FEW_2, FEW_4, FEW_6, FEW_8, UNPACK, MANY = range(10)
METHOD_COLUMNS = 10
# Products of experts: the pairs of row and expert that are multiplied together, and where a task's
# memory has their numbers, then a part, then their rows.
TOGETHER = 48
PART_AT, GATHERED_AT = 8 * TOGETHER, 8 * TOGETHER + 128
# Kinds of formats; ARRANGED are declared layouts that take activations in another order.
PACKED, DECLARED, ARRANGED, DENSE = range(4)

# Attention
PART = 256  # positions; the capacity of a cache is a multiple of it
# Columns for a kind of cache: the kind, bytes of a value, and addresses of functions: those for
# one query, then those for up to 4; among these, for 16 dims, then for 64.
F32, F16, Q8 = range(3)
CACHE_KIND, ITEM, APPEND, SCORES, MIX, WEIGH, UNPACK_KEYS, WIDEN = 0, 1, 2, 3, 5, 9, 11, 12
CACHE_COLUMNS = 13
# Columns of a table of segments, and of a table of single tokens.
START, STOP, KEYS_AT, VALUES_AT, CAPACITY, POSITION, FIRST_PART = range(7)
SEGMENT = 7

# Recurrent ops
CHANNELS = 256  # channels of a convolution task
NARROW = 32  # columns of a state that are updated together
STATE = 2  # column of a table of segments: START, STOP, address of the state

# Programs: columns of an instruction, and the control block of a team, one word per cache line.
FUNCTION, TASKS, ARGUMENTS = range(3)
COLUMNS = 3
LINE = 8  # words
(GENERATION, PROGRAM, SIZE, MET, PHASE, THREADS, BEFORE_PHASE, SCRATCH, PARKED) = (
    LINE * i for i in range(9)
)
