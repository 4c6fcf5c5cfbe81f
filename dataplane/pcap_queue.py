"""The memory of a PcapPort's queue: byte offsets that its templates and its Python side share."""

from dataplane.pcapfile import MAX_INTERFACES
from dataplane.pcapng_verdict import WORD_BYTES
from dataplane.port import BATCH_MAX

# input
CONTENT, CURSOR, CONTENT_BYTES = 0, 8, 16  # the mapped file, where the next record starts
SWAPPED, FRACTION_NS = 24, 32  # the file has the other byte order; pcap: unit of the fraction
FRAMES, FRAME_SIZE, LONGEST = 40, 48, 56
STOPPED = 64  # nothing is read any more: the file has ended, is damaged, or the output is full
DAMAGE, DAMAGE_VALUE, DAMAGE_LIMIT = 72, 80, 88  # a pcapfile.Damage
PACKETS, TOO_LONG, TOO_SHORT = 96, 104, 112  # counters: records read, and not delivered
LAST_NS = 120  # time stamp of the last packet
INTERFACE_COUNT = 128
# output
OUT, OUT_USED, OUT_BYTES, OUT_FD = 136, 144, 152, 160  # OUT null: nothing is written
OUT_ERRNO, OUT_WRITTEN, OUT_TOTAL = 168, 176, 184  # written of what is buffered; drained before
OUT_LOST = 192  # packets that are not in the output
RECEIVED = 200  # packets of the batch at hand

# {u64 how: 0 multiply, 1 divide, 2 shift; u64 factor, i64 offset_ns, u32 link type, u32 snap}
INTERFACES = 256
HOW, FACTOR, OFFSET_NS, LINK_TYPE, SNAP = 0, 8, 16, 24, 28
INTERFACE_BYTES = 32

# what the writer says of each verdict (pcapng_verdict.py)
COMMENTS = INTERFACES + INTERFACE_BYTES * MAX_INTERFACES
COMMENT_COUNT = 10  # the five verdicts, where a redirect goes by its HOW_*, and what `send` says
COMMENT_HOW, COMMENT_SENT = 5, 9

# a row a buffer: {pointer, end, u32 verdict + 1, u32 target, u64 timestamp_ns, u64 bytes missing}
ROWS = COMMENTS + WORD_BYTES * COMMENT_COUNT
ROW_DATA, ROW_END, ROW_VERDICT, ROW_TARGET, ROW_NS, ROW_MISSING = 0, 8, 16, 20, 24, 32
ROW_HOW = 40  # u64, HOW_KIND of a redirect; else what is no such thing
ROW_BYTES = 48
QUEUE_BYTES = ROWS + ROW_BYTES * BATCH_MAX
