"""bpf_tcp_raw_gen/check_syncookie_ipv4/6: SYN cookies without a listening socket.

The algorithm is the kernel's (net/ipv4/syncookies.c, net/ipv6/syncookies.c, net/core/filter.c of
Linux 6.18): cookie = hash0 + sequence + (minutes << 24) + ((hash1(minutes) + index) mod 2^24), both
hashes SipHash-2-4 of addresses and ports, the index that of the largest announced MSS in a table of
four.  A cookie is good for the minute it is made in and the next.  The two keys are random and
those of the loaded code, so that whatever worker sees the ACK can check the cookie; they end with
the process, as the kernel's do with the boot.  A host's own cookies are others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from xdp_runtime.helpers.clock import CLOCK_MONOTONIC_COARSE, COARSE
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.siphash import SIPHASH, siphash
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine

Factory = Callable[..., Any]
EACCES, EINVAL = 13, 22
_TCP_BYTES = 20
_SOURCE, _SEQUENCE, _ACKNOWLEDGED, _OFFSET = 0, 4, 8, 12  # in struct tcphdr
_PERIOD_NS = 60 * 1_000_000_000  # TCP_SYNCOOKIE_PERIOD
_MAX_AGE = 2  # MAX_SYNCOOKIE_AGE
_END, _NOTHING, _MSS = 0, 1, 2  # TCP options
_MSS_BYTES = 4
_U32, _LOW24 = 0xFFFFFFFF, (1 << 24) - 1
_KEYS_BYTES, _READY = 32, 32


@dataclass(frozen=True, slots=True)
class _Version:
    """Of IP: where its header has the two addresses, how large each is, and the MSS table."""

    number: int
    addresses: int
    address_bytes: int
    table: tuple[int, int, int, int]
    unannounced: int  # the MSS of a SYN without that option

    @property
    def header_bytes(self) -> int:
        return self.addresses + 2 * self.address_bytes


_V4 = _Version(4, 12, 4, (536, 1300, 1440, 1460), 536)
_V6 = _Version(6, 8, 16, (1280 - 60, 1480 - 60, 1500 - 60, 9000 - 60), 1280 - 60)


# --- what a cookie is, in plain Python ------------------------------------------------------------
@cache
def _interpreters_keys() -> tuple[bytes, bytes]:
    return os.urandom(16), os.urandom(16)


def announced_mss(tcp: bytes) -> int:
    """tcp_parse_mss_option(): 0 if there is none; the last one counts."""
    options, mss = tcp[_TCP_BYTES:(tcp[_OFFSET] >> 4) * 4], 0
    while options:
        kind = options[0]
        if kind == _END:
            break
        if kind == _NOTHING:
            options = options[1:]
            continue
        if len(options) < 2 or not 2 <= options[1] <= len(options):
            break
        if kind == _MSS and options[1] == _MSS_BYTES:
            mss = int.from_bytes(options[2:4], "big") or mss
        options = options[options[1]:]
    return mss


def _minutes() -> int:
    """tcp_cookie_time()"""
    return time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE) // _PERIOD_NS & _U32


def _hash_of(ip: _Version, header: bytes, tcp: bytes, count: int, which: int) -> int:
    """cookie_hash()"""
    addresses = header[ip.addresses:ip.header_bytes]
    number = count.to_bytes(4, "little")
    if ip.number == 4:
        record = addresses + tcp[2:4] + tcp[:2] + number
    else:
        record = addresses + number + tcp[:4]
    return siphash(record, _interpreters_keys()[which]) & _U32


def _interpreter_of_generating(ip: _Version) -> Callable[..., int]:
    def interpret(machine: Machine, header: bytes, tcp: bytes, length: int) -> int:
        if length < _TCP_BYTES or length != (tcp[_OFFSET] >> 4) * 4:
            return -EINVAL
        mss = announced_mss(tcp) or ip.unannounced
        index = max((n for n, entry in enumerate(ip.table) if mss >= entry), default=0)
        count = _minutes()
        cookie = (_hash_of(ip, header, tcp, 0, 0) + int.from_bytes(tcp[4:8], "big")
                  + (count << 24) + (_hash_of(ip, header, tcp, count, 1) + index & _LOW24))
        return cookie & _U32 | ip.table[index] << 32

    return interpret


def _interpreter_of_checking(ip: _Version) -> Callable[..., int]:
    def interpret(machine: Machine, header: bytes, tcp: bytes) -> int:
        count, sequence = _minutes(), int.from_bytes(tcp[4:8], "big") - 1
        cookie = int.from_bytes(tcp[8:12], "big") - 1
        cookie = cookie - _hash_of(ip, header, tcp, 0, 0) - sequence & _U32
        age = count - (cookie >> 24) & 0xFF
        if age >= _MAX_AGE:
            return -EACCES
        index = cookie - _hash_of(ip, header, tcp, count - age & _U32, 1) & _LOW24
        return 0 if index < len(ip.table) else -EACCES

    return interpret


# --- compiled -------------------------------------------------------------------------------------
def _keys(m: Any) -> Factory:
    def syncookie_keys():  # type: ignore
        """The two keys; whoever comes first draws them, the others wait."""
        keys = m.own_memory(40)
        while m.acquire_u64(keys, _READY) != 2:
            if m.cas_u64(keys, _READY, 0, 1):
                drawn = 0
                while drawn < _KEYS_BYTES:
                    got = m.c_getrandom(m.gep(keys, drawn), _KEYS_BYTES - drawn, 0)
                    if got > 0:
                        drawn += got
                m.release_u64(keys, _READY, 2)
            m.pause()
        return keys

    return syncookie_keys


KEYS = Template("syncookie_keys", _keys, "ptr()", inline=False)


def _cookie_hash(ip: _Version) -> Template:
    first, size, version = ip.addresses, 2 * ip.address_bytes, ip.number
    record_bytes = size + 8

    def factory(m: Any) -> Factory:
        siphash, keys = m.extern(SIPHASH), m.extern(KEYS)

        def cookie_hash(header, tcp, count, which):  # type: ignore
            record = m.gep(m.alloca(40), 0)
            m.copy(record, m.gep(header, first), size)
            ports = m.load_u32(tcp, _SOURCE)
            if version == 4:
                m.store_u32(record, size, (ports << 16) | m.lshr(ports, 16))
                m.store_u32(record, size + 4, count)
            else:
                m.store_u32(record, size, count)
                m.store_u32(record, size + 4, ports)
            return siphash(record, record_bytes, m.gep(keys(), which * 16)) & _U32

        return cookie_hash

    return Template(f"cookie_hash_{version}", factory, "i64(ptr, ptr, i64, i64)", (SIPHASH, KEYS),
                    inline=False)


def _parse(m: Any) -> Factory:
    def tcp_parse_mss(tcp, end):  # type: ignore
        mss, at = 0, _TCP_BYTES
        while at < end:
            kind = m.load_u8(tcp, at)
            if kind == _END:
                return mss
            if kind == _NOTHING:
                at += 1
            else:
                if at + 2 > end:
                    return mss
                size = m.load_u8(tcp, at + 1)
                if size < 2 or at + size > end:
                    return mss
                if kind == _MSS and size == _MSS_BYTES:
                    announced = m.swap16(m.load_u16(tcp, at + 2))
                    if announced != 0:
                        mss = announced
                at += size
        return mss

    return tcp_parse_mss


PARSE = Template("tcp_parse_mss", _parse, "i64(ptr, i64)", inline=False)


def _generate(ip: _Version, hashed: Template) -> Template:
    second, third, fourth = ip.table[1:]
    smallest, unannounced = ip.table[0], ip.unannounced

    def factory(m: Any) -> Factory:
        cookie_hash, parse, coarse = m.extern(hashed), m.extern(PARSE), m.extern(COARSE)

        def gen_syncookie(header, tcp, length):  # type: ignore
            length = length & _U32
            if length < _TCP_BYTES or length != (m.load_u8(tcp, _OFFSET) >> 4) * 4:
                return -EINVAL
            mss = parse(tcp, length)
            if mss == 0:
                mss = unannounced
            index, entry = 0, smallest
            if mss >= fourth:
                index, entry = 3, fourth
            elif mss >= third:
                index, entry = 2, third
            elif mss >= second:
                index, entry = 1, second
            count = m.udiv(coarse(), _PERIOD_NS) & _U32
            cookie = cookie_hash(header, tcp, 0, 0) + m.swap32(m.load_u32(tcp, _SEQUENCE))
            cookie += (count << 24) + ((cookie_hash(header, tcp, count, 1) + index) & _LOW24)
            return (cookie & _U32) | (entry << 32)

        return gen_syncookie

    return Template(f"gen_syncookie_{ip.number}", factory, "i64(ptr, ptr, i64)",
                    (hashed, PARSE, COARSE), inline=False)


def _check(ip: _Version, hashed: Template) -> Template:
    def factory(m: Any) -> Factory:
        cookie_hash, coarse = m.extern(hashed), m.extern(COARSE)

        def check_syncookie(header, tcp):  # type: ignore
            count = m.udiv(coarse(), _PERIOD_NS) & _U32
            # both numbers less one, which cancels out
            cookie = (m.swap32(m.load_u32(tcp, _ACKNOWLEDGED)) - cookie_hash(header, tcp, 0, 0)
                      - m.swap32(m.load_u32(tcp, _SEQUENCE))) & _U32
            age = (count - (cookie >> 24)) & 0xFF
            if age >= _MAX_AGE:
                return -EACCES
            if (cookie - cookie_hash(header, tcp, (count - age) & _U32, 1)) & _LOW24 < 4:
                return 0
            return -EACCES

        return check_syncookie

    return Template(f"check_syncookie_{ip.number}", factory, "i64(ptr, ptr)", (hashed, COARSE),
                    inline=False)


def _helpers(first_id: int, ip: _Version) -> tuple[Helper, Helper]:
    hashed = _cookie_hash(ip)
    name, header = f"syncookie_ipv{ip.number}", (1, ip.header_bytes)
    return (
        Helper(first_id, f"tcp_raw_gen_{name}", (Arg.FIXED, Arg.MEM, Arg.SIZE_OR_ZERO), Ret.SCALAR,
               _interpreter_of_generating(ip), _generate(ip, hashed), sizes=(header,),
               packet=True, gpl_only=True),
        Helper(first_id + 2, f"tcp_raw_check_{name}", (Arg.FIXED, Arg.FIXED), Ret.SCALAR,
               _interpreter_of_checking(ip), _check(ip, hashed),
               sizes=(header, (2, _TCP_BYTES)), packet=True, gpl_only=True),
    )


HELPERS = (*_helpers(204, _V4), *_helpers(205, _V6))
