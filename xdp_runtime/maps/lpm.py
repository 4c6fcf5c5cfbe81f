"""LPM_TRIE: the longest stored prefix of a key, by a trie of 16-way nodes.

    head      u64 sequence (line 0), the lock and the epoch (line 1), then under the lock: the pools
              (pool.py) of elements (128) and of nodes (192); from 256 on the workers' lines
    root      for each value of the first R bits {u32 best, u32 child}, then u32 exact[2 << R]
    nodes     u32 depth, u32 bitmap, u32 child[16], u32 exact[30]: three cache lines
    elements  u32 prefix length, ..., the key's data, the value

A node at `depth` looks at the four key bits from there on. The 30 prefixes that end within them are
numbered as in a binary heap: 1 is the node's own path, 2 and 3 are one bit longer, 16..31 four bits
(the tree bitmap of Eatherton, Varghese and Dittia). One `and` with the bits on the key's way and
one count of zeros find the longest that exists. Levels at which only one way goes on have no node,
so there are at most 2 nodes a prefix; what was skipped is compared at the end, with the element
that was found. If that comparison fails after c bits, the walk is repeated for prefixes of up to c
bits, which then match. The root is such a node of R bits (8 to 16, by the size of the map) in which
for each slot the best prefix is written down.

Readers take no lock. Whatever is unlinked, node or element, is first made unreachable, then counted
in the sequence, then given back; who finds the sequence changed behind his walk walks again.
Inserts change one link, and do not count.

The order of keys, return codes and limits are those of kernel/bpf/lpm_trie.c; a key of a prefix
keeps the bits behind its length as they were last given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xdp_runtime.maps.family import (
    EEXIST,
    EINVAL,
    ENOENT,
    ENOMEM,
    ENOSPC,
    Mended,
    Region,
    no_entries,
    round_up,
)
from xdp_runtime.maps.hash_table import TAIL, Factory
from xdp_runtime.maps.lock import UNLOCK
from xdp_runtime.maps.lpm_repair import (
    BITMAP,
    CHILD,
    DEPTH,
    EXACT,
    LOCK_TRIE,
    NODE_BYTES,
    NODE_POOL,
    SEQUENCE,
)
from xdp_runtime.maps.pool import (
    COUNT,
    FRESH,
    GIVE_ONE,
    PREPARE,
    READY,
    TAKE,
    head_bytes,
    spare,
)
from xdp_runtime.object import MapFlag, MapSpec
from xdp_runtime.template import Template

LENGTH, DATA = 0, 16

_LOW = 0xFFFFFFFF
_DATA_MAX_BYTES = 256  # LPM_DATA_SIZE_MAX
_FLAGS = (MapFlag.NO_PREALLOC | MapFlag.NUMA_NODE | MapFlag.RDONLY | MapFlag.WRONLY
          | MapFlag.RDONLY_PROG | MapFlag.WRONLY_PROG)
_VALUE_MAX_BYTES = (1 << 22) - 256 - 40  # KMALLOC_MAX_SIZE - LPM_DATA_SIZE_MAX - the node

# head, root, nodes, elements, data_size, value_size, root_bits, stride, max_entries, element_end,
# node_end; worker
LEADING = "ptr, ptr, ptr, ptr, i64, i64, i64, i64, i64, i64, i64, i64"


def _common(m: Any) -> Factory:
    tail = m.extern(TAIL)

    def lpm_common(data, stored, size):  # type: ignore
        at = 0
        while at + 8 <= size:
            differ = m.load_u64(data, at) ^ m.load_u64(stored, at)
            if differ != 0:
                return (at << 3) + m.leading_zeros(m.swap64(differ))
            at += 8
        if at < size:
            differ = tail(data, at, size - at) ^ m.load_u64(stored, at)
            return (at << 3) + m.leading_zeros(m.swap64(differ))
        return size << 3

    return lpm_common


# how many leading bits a key's data shares with an element's, which is padded with zeros
COMMON = Template("lpm_common", _common, "i64(ptr, ptr, i64)", (TAIL,))


def _nibble(m: Any) -> Factory:
    def lpm_nibble(data, depth):  # type: ignore
        return (m.load_u8(data, depth >> 3) >> (~depth & 4)) & 15

    return lpm_nibble


NIBBLE = Template("lpm_nibble", _nibble, "i64(ptr, i64)")


def _top(m: Any) -> Factory:
    def lpm_top(data, root_bits):  # type: ignore
        if root_bits == 8:
            return m.load_u8(data, 0)
        return m.swap16(m.load_u16(data, 0)) >> (16 - root_bits)

    return lpm_top


TOP = Template("lpm_top", _top, "i64(ptr, i64)")


def _walk(m: Any) -> Factory:
    nibble, top_of = m.extern(NIBBLE), m.extern(TOP)

    def lpm_walk(root, nodes, root_bits, data, limit):  # type: ignore
        top = top_of(data, root_bits)
        if limit < root_bits:
            position = (1 << limit) | (top >> (root_bits - limit))
            while position > 0:
                best = m.acquire_u32(root, (8 << root_bits) + (position << 2))
                if best != 0:
                    return best
                position = position >> 1
            return 0
        word = m.acquire_u64(root, top << 3)
        best = word & _LOW
        link = m.lshr(word, 32)
        held = 0  # the deepest node with a prefix of the key, and which
        number = 0
        while link != 0:
            node = m.inside(nodes, link << 3)
            word = m.acquire_u64(node, DEPTH)
            left = limit - (word & _LOW)
            if left <= 0:
                break
            way = nibble(data, word & _LOW)
            mine = (1 << (16 + way)) | (1 << (8 + (way >> 1))) | (1 << (4 + (way >> 2))) | (
                1 << (2 + (way >> 3)))
            if left < 4:
                mine &= (1 << (2 << left)) - 1
            mine &= m.lshr(word, 32)
            if mine != 0:
                held = link
                number = 63 - m.leading_zeros(mine)
            link = m.acquire_u32(node, CHILD + (way << 2))
        if held != 0:
            best = m.acquire_u32(nodes, (held << 3) + EXACT + (number << 2))
        return best

    return lpm_walk


# the element of the longest prefix of up to `limit` bits on the key's way, skipped bits unseen
WALK = Template("lpm_walk", _walk, "i64(ptr, ptr, i64, ptr, i64)", (NIBBLE, TOP))


def _find(m: Any) -> Factory:
    walk, common = m.extern(WALK), m.extern(COMMON)

    def lpm_find(head, root, nodes, elements, data_size, root_bits, key):  # type: ignore
        length = m.load_u32(key, 0)
        if length > data_size << 3:
            return 0
        data = m.gep(key, 4)
        while True:
            sequence = m.acquire_u64(head, SEQUENCE)
            limit = length
            while True:
                link = walk(root, nodes, root_bits, data, limit)
                if link == 0:
                    break
                element = m.inside(elements, link << 3)
                same = common(data, m.inside(element, DATA), data_size)
                if same >= m.acquire_u32(element, LENGTH):
                    break
                if same >= limit:  # somebody writes here: look again
                    break
                limit = same
            if m.acquire_u64(head, SEQUENCE) == sequence:
                return link
            m.pause()

    return lpm_find


FIND = Template("lpm_find", _find, "i64(ptr, ptr, ptr, ptr, i64, i64, ptr)", (WALK, COMMON))


def _lookup(m: Any) -> Factory:
    find = m.extern(FIND)

    def lpm_lookup(  # type: ignore
        head, root, nodes, elements, data_size, value_size, root_bits, stride, max_entries,
        element_end, node_end, worker, key
    ):
        link = find(head, root, nodes, elements, data_size, root_bits, key)
        if link == 0:
            return m.null()
        # one sum behind the element, or LLVM cannot tell that it is not null
        return m.inside(m.inside(elements, link << 3), (data_size + DATA + 7) & ~7)

    return lpm_lookup


def _read(m: Any) -> Factory:
    find = m.extern(FIND)

    def lpm_read(  # type: ignore
        head, root, nodes, elements, data_size, value_size, root_bits, stride, max_entries,
        element_end, node_end, worker, key, out
    ):
        while True:
            sequence = m.acquire_u64(head, SEQUENCE)
            link = find(head, root, nodes, elements, data_size, root_bits, key)
            if link == 0:
                return -ENOENT
            value = m.inside(elements, (link << 3) + DATA + ((data_size + 7) & ~7))
            for at in range(value_size):
                m.store_u8(out, at, m.load_u8(value, at))
            if m.acquire_u64(head, SEQUENCE) == sequence:
                return 0
            m.pause()

    return lpm_read


# what DESCEND leaves behind, in scratch memory
_PLACE, _ABOVE, _BLOCK, _SAME, _LIKE, _PARENT = 0, 8, 16, 24, 32, 40


def _descend(m: Any) -> Factory:
    nibble, top_of, common = m.extern(NIBBLE), m.extern(TOP), m.extern(COMMON)

    def lpm_descend(root, nodes, elements, data_size, root_bits, data, depth, out):  # type: ignore
        place = m.inside(root, (top_of(data, root_bits) << 3) + 4)
        first = m.load_u32(place, 0)
        m.store_ptr(out, _PLACE, place)
        m.store_ptr(out, _ABOVE, m.null())
        m.store_u64(out, _BLOCK, 0)
        m.store_u64(out, _PARENT, 0)
        if first == 0:
            return 0
        # any prefix on the key's way: what it shares with the key, the nodes above it share
        link = first
        while True:
            node = m.inside(nodes, link << 3)
            at = m.load_u32(node, DEPTH)
            after = 0
            if at < depth:
                after = m.load_u32(node, CHILD + (nibble(data, at) << 2))
            if after == 0:
                break
            link = after
        while True:
            node = m.inside(nodes, link << 3)
            bits = m.load_u32(node, BITMAP)
            if bits != 0:
                break
            way = 0
            while m.load_u32(node, CHILD + (way << 2)) == 0:
                way += 1
            link = m.load_u32(node, CHILD + (way << 2))
        like = m.load_u32(node, EXACT + (m.trailing_zeros(bits) << 2))
        same = common(data, m.inside(elements, (like << 3) + DATA), data_size)
        m.store_u64(out, _LIKE, like)
        m.store_u64(out, _SAME, same)
        link = first
        above = m.null()
        parent = 0
        while link != 0:
            node = m.inside(nodes, link << 3)
            at = m.load_u32(node, DEPTH)
            if at > depth or at > same:
                break
            if at == depth:
                m.store_ptr(out, _PLACE, place)
                m.store_ptr(out, _ABOVE, above)
                m.store_u64(out, _PARENT, parent)
                return link
            above = place
            parent = link
            place = m.inside(node, CHILD + (nibble(data, at) << 2))
            link = m.load_u32(place, 0)
        m.store_ptr(out, _PLACE, place)
        m.store_u64(out, _BLOCK, link)
        return 0

    return lpm_descend


# the node of this depth on the key's way, or 0; in `out` where it is linked, or what is in its way
DESCEND = Template("lpm_descend", _descend, "i64(ptr, ptr, ptr, i64, i64, ptr, i64, ptr)",
                   (NIBBLE, TOP, COMMON), inline=False)


def _cover(m: Any) -> Factory:
    def lpm_cover(root, elements, root_bits, position, length, old, new):  # type: ignore
        first = (position << (root_bits - length)) - (1 << root_bits)
        for at in range(first, first + (1 << (root_bits - length))):
            best = m.load_u32(root, at << 3)
            if old == 0:
                if best == 0 or m.load_u32(elements, (best << 3) + LENGTH) < length:
                    m.release_u32(root, at << 3, new)
            elif best == old:
                m.release_u32(root, at << 3, new)
        return 0

    return lpm_cover


# let the root's slots under a prefix know: a new one (old is 0), or another in place of `old`
COVER = Template("lpm_cover", _cover, "i64(ptr, ptr, i64, i64, i64, i64, i64)", inline=False)


def _attach(m: Any) -> Factory:
    take, nibble = m.extern(TAKE), m.extern(NIBBLE)

    def lpm_attach(  # type: ignore
        head, nodes, elements, node_end, data, depth, number, new, out
    ):
        pool = m.gep(head, NODE_POOL)
        link = take(head, pool, nodes, NODE_BYTES, node_end)
        node = m.inside(nodes, link << 3)
        m.zero(node, NODE_BYTES)
        m.store_u32(node, DEPTH, depth)
        m.store_u32(node, BITMAP, 1 << number)
        m.store_u32(node, EXACT + (number << 2), new)
        block = m.load_u64(out, _BLOCK)
        if block != 0:
            same = m.load_u64(out, _SAME)
            like = m.inside(elements, (m.load_u64(out, _LIKE) << 3) + DATA)
            if same >= depth:
                m.store_u32(node, CHILD + (nibble(like, depth) << 2), block)
            else:
                fork = same & ~3
                joint_link = take(head, pool, nodes, NODE_BYTES, node_end)
                joint = m.inside(nodes, joint_link << 3)
                m.zero(joint, NODE_BYTES)
                m.store_u32(joint, DEPTH, fork)
                m.store_u32(joint, CHILD + (nibble(like, fork) << 2), block)
                m.store_u32(joint, CHILD + (nibble(data, fork) << 2), link)
                link = joint_link
        m.release_u32(m.load_ptr(out, _PLACE), 0, link)
        return 0

    return lpm_attach


# a new node with one prefix, where DESCEND found that it belongs
ATTACH = Template("lpm_attach", _attach, "i64(ptr, ptr, ptr, i64, ptr, i64, i64, i64, ptr)",
                  (TAKE, NIBBLE), inline=False)


def _count(m: Any) -> Factory:
    def lpm_count(head):  # type: ignore
        m.atomic_add_u64(head, SEQUENCE, 1)
        return 0

    return lpm_count


COUNT_UNLINKED = Template("lpm_count", _count, "i64(ptr)")


def _update(m: Any) -> Factory:
    lock, unlock, take, give = (m.extern(t) for t in (LOCK_TRIE, UNLOCK, TAKE, GIVE_ONE))
    descend, cover, attach = m.extern(DESCEND), m.extern(COVER), m.extern(ATTACH)
    nibble, top_of, tail = m.extern(NIBBLE), m.extern(TOP), m.extern(TAIL)
    count_unlinked, prepare = m.extern(COUNT_UNLINKED), m.extern(PREPARE)
    ready = m.extern(READY)

    def lpm_update(  # type: ignore
        head, root, nodes, elements, data_size, value_size, root_bits, stride, max_entries,
        element_end, node_end, worker, key, value, flags
    ):
        length = m.load_u32(key, 0)
        if not m.ule(flags, 2) or length > data_size << 3:
            return -EINVAL
        data = m.gep(key, 4)
        out = m.gep(m.alloca(48), 0)
        prepare(head, stride, max_entries, element_end, worker)
        lock(head, root, nodes, elements, root_bits, stride)
        depth = (length - 1) & ~3
        at_root = length <= root_bits
        link = 0
        old = 0
        if at_root:
            number = (1 << length) | (top_of(data, root_bits) >> (root_bits - length))
            place = m.inside(root, (8 << root_bits) + (number << 2))
            old = m.load_u32(place, 0)
        else:
            number = (1 << (length - depth)) | (nibble(data, depth) >> (4 - length + depth))
            link = descend(root, nodes, elements, data_size, root_bits, data, depth, out)
            place = m.inside(nodes, (link << 3) + EXACT + (number << 2))
            if link != 0:
                old = m.load_u32(place, 0)
        result = 0
        if old != 0:
            if flags == 1:
                result = -EEXIST
        elif flags == 2:
            result = -ENOENT
        elif m.load_u32(head, COUNT) == max_entries:
            result = -ENOSPC
        if result == 0 and (ready(head, head, stride, element_end, 1, worker) == 0 or ready(
                head, m.gep(head, NODE_POOL), NODE_BYTES, node_end, 2, worker) == 0):
            result = -ENOMEM
        if result < 0:
            unlock(head)
            return result
        new = take(head, head, elements, stride, element_end)
        element = m.inside(elements, new << 3)
        m.store_u32(element, LENGTH, length)
        at = 0
        while at + 8 <= data_size:
            m.store_u64(element, DATA + at, m.load_u64(data, at))
            at += 8
        if at < data_size:
            m.store_u64(element, DATA + at, tail(data, at, data_size - at))
        m.copy(m.inside(element, DATA + ((data_size + 7) & ~7)), value, value_size)
        if old == 0:
            m.store_u32(head, COUNT, m.load_u32(head, COUNT) + 1)
        if at_root:
            m.release_u32(place, 0, new)
            cover(root, elements, root_bits, number, length, old, new)
        elif link != 0:
            m.release_u32(place, 0, new)
            if old == 0:
                node = m.inside(nodes, link << 3)
                m.release_u32(node, BITMAP, m.load_u32(node, BITMAP) | (1 << number))
        else:
            attach(head, nodes, elements, node_end, data, depth, number, new, out)
        if old != 0:
            count_unlinked(head)
            give(head, head, elements, old)
        unlock(head)
        return 0

    return lpm_update


def _delete(m: Any) -> Factory:
    lock, unlock, give = (m.extern(t) for t in (LOCK_TRIE, UNLOCK, GIVE_ONE))
    descend, cover = m.extern(DESCEND), m.extern(COVER)
    nibble, top_of, prune = m.extern(NIBBLE), m.extern(TOP), m.extern(PRUNE)
    count_unlinked = m.extern(COUNT_UNLINKED)

    def lpm_delete(  # type: ignore
        head, root, nodes, elements, data_size, value_size, root_bits, stride, max_entries,
        element_end, node_end, worker, key
    ):
        length = m.load_u32(key, 0)
        if length > data_size << 3:
            return -EINVAL
        data = m.gep(key, 4)
        out = m.gep(m.alloca(48), 0)
        lock(head, root, nodes, elements, root_bits, stride)
        old = 0
        if length <= root_bits:
            number = (1 << length) | (top_of(data, root_bits) >> (root_bits - length))
            place = m.inside(root, (8 << root_bits) + (number << 2))
            old = m.load_u32(place, 0)
            if old != 0:
                m.release_u32(place, 0, 0)
                shorter = number >> 1
                new = 0
                while shorter > 0 and new == 0:
                    new = m.load_u32(root, (8 << root_bits) + (shorter << 2))
                    shorter = shorter >> 1
                cover(root, elements, root_bits, number, length, old, new)
        else:
            depth = (length - 1) & ~3
            number = (1 << (length - depth)) | (nibble(data, depth) >> (4 - length + depth))
            link = descend(root, nodes, elements, data_size, root_bits, data, depth, out)
            if link != 0:
                node = m.inside(nodes, link << 3)
                old = m.load_u32(node, EXACT + (number << 2))
                if old != 0:
                    m.release_u32(node, BITMAP, m.load_u32(node, BITMAP) & ~(1 << number))
                    m.release_u32(node, EXACT + (number << 2), 0)
                    prune(head, nodes, link, out)
        if old == 0:
            unlock(head)
            return -ENOENT
        m.store_u32(head, COUNT, m.load_u32(head, COUNT) - 1)
        count_unlinked(head)
        give(head, head, elements, old)
        unlock(head)
        return 0

    return lpm_delete


def _only(m: Any) -> Factory:
    def lpm_only(node):  # type: ignore
        """The one child of a node without prefixes, 0 if it has none, -1 if it must stay."""
        if m.load_u32(node, BITMAP) != 0:
            return -1
        found = 0
        for way in range(16):
            child = m.load_u32(node, CHILD + (way << 2))
            if child != 0:
                if found != 0:
                    return -1
                found = child
        return found

    return lpm_only


ONLY = Template("lpm_only", _only, "i64(ptr)", inline=False)


def _prune(m: Any) -> Factory:
    give, only, count_unlinked = m.extern(GIVE_ONE), m.extern(ONLY), m.extern(COUNT_UNLINKED)

    def lpm_prune(head, nodes, link, out):  # type: ignore
        pool = m.gep(head, NODE_POOL)
        child = only(m.inside(nodes, link << 3))
        if child < 0:
            return 0
        m.release_u32(m.load_ptr(out, _PLACE), 0, child)
        count_unlinked(head)
        give(head, pool, nodes, link)
        parent = m.load_u64(out, _PARENT)
        if child == 0 and parent != 0:
            sibling = only(m.inside(nodes, parent << 3))
            if sibling > 0:
                m.release_u32(m.load_ptr(out, _ABOVE), 0, sibling)
                count_unlinked(head)
                give(head, pool, nodes, parent)
        return 0

    return lpm_prune


# take out a node that lost a prefix, and the one above it, where they are needed no more
PRUNE = Template("lpm_prune", _prune, "i64(ptr, ptr, i64, ptr)", (GIVE_ONE, ONLY, COUNT_UNLINKED),
                 inline=False)


def _seek(m: Any) -> Factory:
    nibble, top_of, descend = m.extern(NIBBLE), m.extern(TOP), m.extern(DESCEND)

    def lpm_seek(root, nodes, elements, data_size, root_bits, key, trail):  # type: ignore
        """Stack the way to a stored key; how many nodes deep it is, -1 if it is not there.
        The trail has u32 link, u32 number for each level, the root first."""
        if m.is_null(key):
            return -1
        length = m.load_u32(key, 0)
        if length > data_size << 3:
            return -1
        data = m.gep(key, 4)
        top = top_of(data, root_bits)
        if length <= root_bits:
            number = (1 << length) | (top >> (root_bits - length))
            if m.load_u32(root, (8 << root_bits) + (number << 2)) == 0:
                return -1
            m.store_u32(trail, 4, number)
            return 0
        depth = (length - 1) & ~3
        number = (1 << (length - depth)) | (nibble(data, depth) >> (4 - length + depth))
        target = descend(root, nodes, elements, data_size, root_bits, data, depth,
                         m.gep(m.alloca(48), 0))
        if target == 0 or m.load_u32(nodes, (target << 3) + EXACT + (number << 2)) == 0:
            return -1
        m.store_u32(trail, 4, (1 << root_bits) + top)
        link = m.load_u32(root, (top << 3) + 4)
        level = 1
        while link != target:
            way = nibble(data, m.load_u32(nodes, (link << 3) + DEPTH))
            m.store_u32(trail, level << 3, link)
            m.store_u32(trail, (level << 3) + 4, 16 + way)
            link = m.load_u32(nodes, (link << 3) + CHILD + (way << 2))
            level += 1
        m.store_u32(trail, level << 3, target)
        m.store_u32(trail, (level << 3) + 4, number)
        return level

    return lpm_seek


SEEK = Template("lpm_seek", _seek, "i64(ptr, ptr, ptr, i64, i64, ptr, ptr)",
                (NIBBLE, TOP, DESCEND), inline=False)

_VISIT, _ADVANCE, _ENTER = 0, 1, 2


def _following(m: Any) -> Factory:
    def lpm_following(  # type: ignore
        root, nodes, elements, data_size, root_bits, trail, level, step, out
    ):
        """The next key from a place on: longer prefixes before those they lie in, a walk in
        postorder over the heap numbers."""
        number = m.load_u32(trail, (level << 3) + 4)
        found = 0
        while found == 0:
            leaves = 16
            node = m.inside(nodes, m.load_u32(trail, level << 3) << 3)
            if level == 0:
                leaves = 1 << root_bits
            if step == _ENTER:
                while number < leaves:
                    number = number << 1
                if level == 0:
                    child = m.load_u32(root, ((number - leaves) << 3) + 4)
                else:
                    child = m.load_u32(node, CHILD + ((number - leaves) << 2))
                step = _VISIT
                if child != 0:
                    m.store_u32(trail, (level << 3) + 4, number)
                    level += 1
                    m.store_u32(trail, level << 3, child)
                    number = 1
                    step = _ENTER
            elif step == _VISIT:
                if level == 0:
                    found = m.load_u32(root, (8 << root_bits) + (number << 2))
                elif number > 1:
                    found = m.load_u32(node, EXACT + (number << 2))
                step = _ADVANCE
            elif number == 1:
                if level == 0:
                    return -ENOENT
                level -= 1
                number = m.load_u32(trail, (level << 3) + 4)
                step = _VISIT
            elif number & 1 == 0:
                number += 1
                step = _ENTER
            else:
                number = number >> 1
                step = _VISIT
        element = m.inside(elements, found << 3)
        m.store_u32(out, 0, m.load_u32(element, LENGTH))
        for at in range(data_size):
            m.store_u8(out, 4 + at, m.load_u8(element, DATA + at))
        return 0

    return lpm_following


FOLLOWING = Template("lpm_following", _following,
                     "i64(ptr, ptr, ptr, i64, i64, ptr, i64, i64, ptr)", inline=False)


def _next_key(m: Any) -> Factory:
    lock, unlock, seek = m.extern(LOCK_TRIE), m.extern(UNLOCK), m.extern(SEEK)
    following = m.extern(FOLLOWING)

    def lpm_next_key(  # type: ignore
        head, root, nodes, elements, data_size, value_size, root_bits, stride, max_entries,
        element_end, node_end, worker, key, out
    ):
        trail = m.gep(m.alloca(4160), 0)
        lock(head, root, nodes, elements, root_bits, stride)
        step = _ADVANCE
        level = seek(root, nodes, elements, data_size, root_bits, key, trail)
        if level < 0:
            level = 0
            m.store_u32(trail, 4, 1)
            step = _ENTER
        result = following(root, nodes, elements, data_size, root_bits, trail, level, step, out)
        unlock(head)
        return result

    return lpm_next_key


def _any(m: Any) -> Factory:
    def lpm_any(nodes, link):  # type: ignore
        """An element at or below a node: there is always one."""
        while True:
            below = 0
            for number in range(2, 32):
                found = m.load_u32(nodes, (link << 3) + EXACT + (number << 2))
                if found != 0:
                    return found
            for way in range(16):
                child = m.load_u32(nodes, (link << 3) + CHILD + (way << 2))
                if child != 0:
                    below = child
            if below == 0:
                return 0
            link = below

    return lpm_any


ANY = Template("lpm_any", _any, "i64(ptr, i64)", inline=False)


def _place(m: Any) -> Factory:
    nibble, top_of, common, any_of = (m.extern(one) for one in (NIBBLE, TOP, COMMON, ANY))

    def lpm_place(root, nodes, elements, data_size, root_bits, key, trail):  # type: ignore
        """Where a key has its place in the order, be it there or not: the way there on the trail,
        and the level | what to do there << 32."""
        length = m.load_u32(key, 0)
        if length > data_size << 3:
            length = data_size << 3
        data = m.gep(key, 4)
        top = top_of(data, root_bits)
        if length <= root_bits:
            m.store_u32(trail, 4, (1 << length) | (top >> (root_bits - length)))
            return _ADVANCE << 32
        m.store_u32(trail, 4, (1 << root_bits) + top)
        link = m.load_u32(root, (top << 3) + 4)
        level = 0
        while link != 0:
            depth = m.load_u32(nodes, (link << 3) + DEPTH)
            element = m.inside(elements, any_of(nodes, link) << 3)
            shared = common(data, m.inside(element, DATA), data_size)
            if shared < depth and shared < length:  # they part on the levels that were skipped
                if m.load_u8(data, shared >> 3) >> (~shared & 7) & 1:
                    break
                level += 1
                m.store_u32(trail, level << 3, link)
                m.store_u32(trail, (level << 3) + 4, 1)
                return level | _ENTER << 32
            if length <= depth:
                break
            level += 1
            m.store_u32(trail, level << 3, link)
            way = nibble(data, depth)
            if length < depth + 4:
                m.store_u32(trail, (level << 3) + 4, (1 << (length - depth)) | (
                    way >> (4 - length + depth)))
                return level | _ADVANCE << 32
            m.store_u32(trail, (level << 3) + 4, 16 + way)
            if length == depth + 4:
                return level | _ADVANCE << 32
            link = m.load_u32(nodes, (link << 3) + CHILD + (way << 2))
        return level | _VISIT << 32

    return lpm_place


PLACE = Template("lpm_place", _place, "i64(ptr, ptr, ptr, i64, i64, ptr, ptr)",
                 (NIBBLE, TOP, COMMON, ANY), inline=False)


def _after(m: Any) -> Factory:
    lock, unlock, place = m.extern(LOCK_TRIE), m.extern(UNLOCK), m.extern(PLACE)
    following = m.extern(FOLLOWING)

    def lpm_after(  # type: ignore
        head, root, nodes, elements, data_size, value_size, root_bits, stride, max_entries,
        element_end, node_end, worker, key, out
    ):
        """As next_key, but behind a key that has gone it goes on where that was."""
        trail = m.gep(m.alloca(4160), 0)
        lock(head, root, nodes, elements, root_bits, stride)
        where = _ENTER << 32
        m.store_u32(trail, 4, 1)
        if not m.is_null(key):
            where = place(root, nodes, elements, data_size, root_bits, key, trail)
        result = following(root, nodes, elements, data_size, root_bits, trail, where & _LOW,
                           where >> 32, out)
        unlock(head)
        return result

    return lpm_after


LOOKUP = Template("lpm_lookup", _lookup, f"ptr({LEADING}, ptr)", (FIND,))
READ = Template("lpm_read", _read, f"i64({LEADING}, ptr, ptr)", (FIND,), inline=False)
UPDATE = Template("lpm_update", _update, f"i64({LEADING}, ptr, ptr, i64)",
                  (LOCK_TRIE, UNLOCK, TAKE, GIVE_ONE, DESCEND, COVER, ATTACH, NIBBLE, TOP, TAIL,
                   COUNT_UNLINKED, PREPARE, READY), inline=False)
DELETE = Template("lpm_delete", _delete, f"i64({LEADING}, ptr)",
                  (LOCK_TRIE, UNLOCK, GIVE_ONE, DESCEND, COVER, NIBBLE, TOP, PRUNE, COUNT_UNLINKED),
                  inline=False)
NEXT_KEY = Template("lpm_next_key", _next_key, f"i64({LEADING}, ptr, ptr)",
                    (LOCK_TRIE, UNLOCK, SEEK, FOLLOWING), inline=False)
AFTER = Template("lpm_after", _after, f"i64({LEADING}, ptr, ptr)",
                 (LOCK_TRIE, UNLOCK, PLACE, FOLLOWING), inline=False)


class LpmTrieFamily:
    """LPM_TRIE.  A key is a u32 prefix length and the data."""

    per_cpu = False
    pools = True
    count = ("head", COUNT)

    def __init__(self) -> None:
        self.operations: Mapping[str, Template] = {
            "lookup": LOOKUP, "peek": LOOKUP, "read": READ, "update": UPDATE, "delete": DELETE,
            "next_key": NEXT_KEY, "after": AFTER,
        }

    def check(self, spec: MapSpec) -> str | None:
        if not spec.flags & MapFlag.NO_PREALLOC:
            return "an LPM trie needs BPF_F_NO_PREALLOC"
        if spec.flags & ~int(_FLAGS):
            return f"flags {spec.flags:#x} are not known for an LPM trie"
        if spec.flags & MapFlag.RDONLY_PROG and spec.flags & MapFlag.WRONLY_PROG:
            return "it can be neither read nor written by programs"
        if spec.max_entries == 0:
            return no_entries(spec)
        if not 5 <= spec.key_size <= 4 + _DATA_MAX_BYTES:
            return f"key size is {spec.key_size}, must be 5 to {4 + _DATA_MAX_BYTES}"
        if not 0 < spec.value_size <= _VALUE_MAX_BYTES:
            return f"value size is {spec.value_size}"
        if max(self._element_end(spec), self._node_end(spec)) > 1 << 35:
            return Mended(f"{spec.max_entries} entries of this size are more than {1 << 35} "
                          "bytes", "lower max_entries")
        return None

    def _stride(self, spec: MapSpec) -> int:
        size = DATA + round_up(spec.key_size - 4, 8) + round_up(spec.value_size, 8)
        return size if size > 64 else 32 if size <= 32 else 64

    def _root_bits(self, spec: MapSpec) -> int:
        if spec.max_entries <= 256 or spec.key_size == 5:
            return 8
        return 12 if spec.max_entries <= 4096 else 16

    def _element_end(self, spec: MapSpec) -> int:
        return self._stride(spec) * (1 + spec.max_entries + spare(self._stride(spec)))

    def _node_end(self, spec: MapSpec) -> int:
        return NODE_BYTES * (1 + 2 * spec.max_entries + spare(NODE_BYTES))

    def regions(self, spec: MapSpec, workers: int) -> tuple[Region, ...]:
        return (Region("head", head_bytes(workers)), Region("root", 16 << self._root_bits(spec)),
                Region("nodes", self._node_end(spec)), Region("elements", self._element_end(spec)))

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        return ("head", "root", "nodes", "elements", spec.key_size - 4, spec.value_size,
                self._root_bits(spec), self._stride(spec), spec.max_entries,
                self._element_end(spec) // 8, self._node_end(spec) // 8)

    def initialise(self, spec: MapSpec, memory: Mapping[str, memoryview], seed: int) -> None:
        head, first = memory["head"], self._stride(spec) // 8
        head[FRESH:FRESH + 4] = first.to_bytes(4, "little")
        head[NODE_POOL + FRESH:NODE_POOL + FRESH + 4] = (NODE_BYTES // 8).to_bytes(4, "little")
