"""A filter that asks the object's maps: what a key is made of, and the kernel's opinion of it."""

from __future__ import annotations

import ipaddress
import os
import random
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from afxdp.filter import parse, to_assembly, words_of_maps
from afxdp.map_filter import KeyShape, Part, shape
from afxdp.mirror import KeySet, _differing
from afxdp.passing import shape_of
from tests.afxdp.test_filter import _TAIL, PACKETS, SEVEN, SIX, TAGGED, A, B
from tests.privileges import needs_bpf
from xdp_runtime import bpf_syscall, isa
from xdp_runtime.asm import assemble
from xdp_runtime.bpf_syscall import Cmd, map_next_key, prog_load, prog_test_run
from xdp_runtime.elf import read_object
from xdp_runtime.errors import ConfigError
from xdp_runtime.maps import limits
from xdp_runtime.object import MapType

OBJECT = Path(__file__).parent / "objects" / "filter_maps.o"
OBJ = read_object(OBJECT)
FRAMES = {name: bytes(packet) for name, packet in {**PACKETS, **TAGGED}.items()}


@pytest.mark.parametrize("word, fields", [
    ("map:vips:dst,dport,proto", "vips: dst, dport, proto"),
    ("map:vips:dst,dport.host,0", "vips: dst, dport.host"),
    ("map:flows", "flows: src, dst, sport, dport, proto"),
    ("map:flows:src,dst,sport,dport,proto,0", "flows: src, dst, sport, dport, proto"),
    ("map:flows6", "flows6: src, dst, sport, dport, proto"),
    ("map:nets", "nets: dst"), ("map:nets6:src", "nets6: src"),
    ("map:Ports:dport", "Ports: dport.host"), ("map:protos:proto", "protos: proto"),
    ("map:tagged", "tagged: vlan, ethertype"), ("map:plain:src", "plain: src"),
    ("map:plain:dport.host", "plain: dport.host"), ("map:short_key:sport", "short_key: sport"),
    ("map:untyped:src,dst", "untyped: src, dst"), ("map:untyped:dst,dport", "untyped: dst, dport"),
])
def test_what_a_key_is_made_of(word: str, fields: str) -> None:
    assert str(shape(word, OBJ)) == fields
    assert words_of_maps(parse(f"tcp and not ({word} or {word})")) == [word]


@pytest.mark.parametrize("word, said", [
    ("map:vips", "its key, vip of 16 bytes, port of 2 bytes, proto of 1 byte, does not say what of "
     "a packet it is (say what it is, such as map:vips:dst or"),
    ("map:plain", "its key, 4 bytes, does not say what of a packet it is"),
    ("map:untyped", "its key, 8 bytes without BTF, does not say"),
    ("map:vips:dst", "its key has 3 members (vip of 16 bytes, port of 2 bytes, proto of 1 byte), "
     "and 1 is said"),
    ("map:short_key:dst", "dst has 4 or 16 bytes, and the key's 2 bytes"),
    ("map:untyped:dst", "dst has 4 or 16 bytes, and the key's 8 bytes"),
    ("map:untyped:src,dst,proto", "which these fields do not fill one behind the other"),
    ("map:bits", "src has 4 or 16 bytes, and the key's src of 8 bits"),
    ("map:bits:src,dst", "src has 4 or 16 bytes, and the key's src of 8 bits"),
    ("map:secret", "user space may not read secret (BPF_F_WRONLY)"),
    ("map:long_key:src", "a key of 256 bytes is longer than the 128 that a filter makes"),
    ("map:ring", "ring is of another type than hash, LPM trie or array"),
    ("map:ports:dport", "filter_maps.o has no map 'ports' (it has: Ports, vips,"),
    ("map:plain:0", "its key has nothing of a packet"),
])
def test_what_no_packet_can_be_asked(word: str, said: str) -> None:
    parse(word)  # the words are right
    with pytest.raises(ConfigError) as caught:
        shape(word, OBJ)
    assert str(caught.value).startswith(f"--filter {word}: ") and said in str(caught.value)


def test_a_port_may_be_either() -> None:
    """A __u16 that is called as a port is, but does not say which byte comes first."""
    one, = [spec for spec in OBJ.maps if spec.name == "short_key"]
    assert shape("map:short_key:dport", OBJ).parts == (Part("dport", 0, 2),)
    assert shape("map:short_key:dport.host", OBJ).parts == (Part("dport", 0, 2, True),)
    assert one.key_size == 2
    with pytest.raises(ConfigError) as caught:
        shape("map:numbers", read_object(OBJECT.with_name("filter_maps.o")))
    assert "its member dport may be as in the packet or a number of this machine, which no " \
        "__be16 says (say it: map:numbers:src,dport, with .host" in str(caught.value)


@pytest.mark.parametrize("text, said", [
    ("map:", "is no map:NAME"), ("map:plain:", "is no map:NAME"),
    ("map:plain:quic", "has a field quic: there are src, dst,"),
    ("map:plain:src.net", "has a field src.net: .host goes with"),
    ("map:protos:proto.host", ".host goes with"), ("tcp map:plain", "is not expected here"),
])
def test_words_that_are_wrong(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert said in str(caught.value)


def test_only_a_run_asks_maps() -> None:
    with pytest.raises(ConfigError) as caught:
        to_assembly(parse("map:plain:src"))
    assert "which only xdpu run --filter does" in str(caught.value)


# ---- the kernel's opinion ------------------------------------------------------------------------

def taken(text: str, keys: dict[str, Iterable[bytes]], packets: Sequence[bytes]) -> list[bool]:
    """What the kernel's own run of the filter takes, with these keys in the sets of the maps."""
    shapes = {word: shape(word, OBJ) for word in words_of_maps(parse(text))}
    sets = [KeySet.create(one) for one in shapes.values()]
    try:
        for one in sets:
            one.follow(b"".join(keys[one.shape.map]))
        names = [f"set{number}" for number in range(len(sets))]
        code = isa.encode(assemble(f"r6 = r1\n{to_assembly(parse(text), shapes)}{_TAIL}", names),
                          [one.fd for one in sets])
        fd = prog_load(code, name="filter")
        try:
            return [prog_test_run(fd, packet).retval == 1 for packet in packets]
        finally:
            os.close(fd)
    finally:
        for one in sets:
            one.close()


def names_taken(text: str, **keys: Iterable[bytes]) -> str:
    found = taken(text, dict(keys), list(FRAMES.values()))
    return ", ".join(name for name, match in zip(FRAMES, found, strict=True) if match)


def four(address: str) -> bytes:
    return ipaddress.IPv4Address(address).packed


def six(address: str) -> bytes:
    return ipaddress.IPv6Address(address).packed


def vip(address: bytes, port: int, proto: int) -> bytes:
    return struct.pack("!16sHBx", address, port, proto)


def flow(src: bytes, dst: bytes, sport: int, dport: int, proto: int) -> bytes:
    return struct.pack("!4s4sHHB3x", src, dst, sport, dport, proto)


def number(value: int, size: int) -> bytes:
    return value.to_bytes(size, sys.byteorder)


@pytest.mark.root
@pytest.mark.parametrize("text, keys, expected", [
    ("map:vips:dst,dport,proto", {"vips": [vip(four(B), 80, 6)]}, "tcp80, vlan"),
    ("map:vips:dst,dport,proto", {"vips": [vip(six(SEVEN), 80, 6), vip(four(B), 53, 17)]},
     "udp53, tcp80 six"),
    ("map:vips:dst,dport.host,proto", {"vips": [vip(four(B), 0x5000, 6)]}, "tcp80, vlan"),
    ("map:flows", {"flows": [flow(four(A), four(B), 4000, 80, 6),
                             flow(four(A), four(B), 4000, 53, 6)]}, "tcp80"),
    ("map:flows6", {"flows6": [six(SEVEN) + six(SIX) + struct.pack("!HH", 53, 4000)
                               + number(17, 4)]}, "udp53 six"),
    ("map:nets", {"nets": [number(16, 4) + four("192.168.99.99"), number(32, 4) + four("1.1.1.1")]},
     "tcp80, udp53, options, fragment, cut tcp, vlan"),
    ("map:nets", {"nets": [number(0, 4) + bytes(4)]},
     "tcp80, tcp back, udp53, options, fragment, icmp, cut ip, cut tcp, vlan"),
    ("map:nets6:src", {"nets6": [number(61, 4) + six("2001:db8:1:7::")]}, "udp53 six"),
    ("map:Ports:dport", {"Ports": [number(80, 4)]}, "tcp80, tcp80 six, vlan, two"),
    ("map:protos:proto", {"protos": [number(1, 4), number(58, 4)]}, "icmp, icmp six"),
    ("map:tagged", {"tagged": [struct.pack("!HH", 9, 0x86DD)]}, "two"),
    ("map:plain:src", {"plain": [four(B)]}, "tcp back, icmp"),
    ("map:plain:src.host", {"plain": [four(B)[::-1 if sys.byteorder == "little" else 1]]},
     "tcp back, icmp"),
    ("map:plain:dport", {"plain": [struct.pack("!Hxx", 53)]}, "udp53"),
    ("map:plain:dport.host", {"plain": [number(53, 4)]}, "udp53"),
    ("map:untyped:src,dst", {"untyped": [four(B) + four(A)]}, "tcp back, icmp"),
    ("udp and not map:plain:dport.host", {"plain": [number(53, 4)]}, "options, udp53 six, two"),
    ("map:plain:dport.host and (map:nets or ip6)",
     {"plain": [number(80, 4)], "nets": [number(32, 4) + four(B)]},
     "tcp80, tcp80 six, vlan, two"),
    ("map:plain:src or map:plain:dst", {"plain": [four(A)]},
     "tcp80, tcp back, udp53, options, fragment, icmp, cut tcp, vlan"),
    ("map:plain:src", {"plain": []}, ""),
])
def test_what_it_takes(text: str, keys: dict[str, list[bytes]], expected: str) -> None:
    assert names_taken(text, **keys) == expected


@pytest.mark.root
def test_random_flows() -> None:
    """Of many packets exactly those whose five numbers are in the map, by keys made here."""
    dice = random.Random(11)
    packets: list[Packet] = []
    keys = []
    for _ in range(400):
        source, target = (f"10.0.0.{dice.randrange(4)}" for _ in range(2))
        kind = dice.choice([TCP, UDP])
        ports = dice.randrange(3), dice.randrange(3)
        ether = Ether() / Dot1Q(vlan=dice.randrange(9)) if dice.random() < 0.3 else Ether()
        packets.append(ether / IP(src=source, dst=target) / kind(sport=ports[0], dport=ports[1]))
        keys.append(flow(four(source), four(target), *ports, 6 if kind is TCP else 17))
    chosen = set(dice.sample(sorted(set(keys)), len(set(keys)) // 2))
    found = taken("map:flows", {"flows": chosen}, [bytes(packet) for packet in packets])
    assert found == [key in chosen for key in keys] and 0 < sum(found) < len(found)
    other = Ether() / IPv6() / TCP()
    assert not any(taken("map:flows", {"flows": [bytes(16)]}, [bytes(other)]))


# ---- the set in the kernel -----------------------------------------------------------------------

def content(one: KeySet) -> set[bytes]:
    found: set[bytes] = set()
    key: bytes | None = None
    while True:
        try:
            key = map_next_key(one.fd, key, one.shape.key_size)
        except FileNotFoundError:
            return found
        found.add(key)


@pytest.mark.root
@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("kind", [MapType.HASH, MapType.LPM_TRIE])
def test_it_follows(kind: MapType, batches: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one random set to the next, also in a kernel that takes one key of a trie at a time."""
    if not batches:
        def refuse(*_: object) -> None:
            raise OSError(limits.ENOTSUPP, "injected")

        monkeypatch.setattr("afxdp.mirror.map_write_batch", refuse)
    dice = random.Random(3)
    made = KeySet.create(KeyShape("random", kind, 8, 100, (Part("dst", 4, 4),)))
    try:
        for _ in range(30):
            keys = [number(dice.choice([8, 24, 32]), 4) + bytes(dice.randrange(3) for _ in range(4))
                    for _ in range(dice.randrange(40))]
            keys = list(dict.fromkeys(keys))
            if made.shape.trie:  # in which a prefix is once
                keys = list({_cut(key): key for key in keys}.values())
            made.follow(b"".join(keys))
            assert content(made) == ({_cut(key) for key in keys} if made.shape.trie else set(keys))
        writes: list[Cmd] = []
        monkeypatch.setattr(bpf_syscall, "bpf", lambda cmd, _: writes.append(cmd))
        made.follow(b"".join(keys))
        assert not writes, "nothing is new"
    finally:
        monkeypatch.undo()
        made.close()


def test_what_differs() -> None:
    """Of keys in the order of a map, which changes in places; also such that end in zeros."""
    dice = random.Random(8)
    for _ in range(300):
        size = dice.choice([1, 2, 4, 7])
        order = [bytes(dice.choice([0, 0, 1, 255]) for _ in range(size)) for _ in range(30)]
        order = list(dict.fromkeys(order))
        before = [key for key in order if dice.random() < 0.9]
        now = [key for key in order if dice.random() < 0.9]
        if dice.random() < 0.3:
            dice.shuffle(now)
        gone, fresh = _differing(b"".join(before), b"".join(now), size)
        assert gone == set(before) - set(now) and fresh == set(now) - set(before)


def _cut(key: bytes) -> bytes:
    length = int.from_bytes(key[:4], sys.byteorder)
    return key[:4] + ipaddress.ip_network((key[4:], length), strict=False).network_address.packed


def test_a_shape_from_another_process() -> None:
    """What an ordinary user tells the set-up process is looked at."""
    good = {"map": "m", "type": 1, "key_size": 8, "max_entries": 4,
            "parts": [{"field": "dst", "at": 4, "size": 4, "host": False, "either": False}]}
    assert shape_of(good).parts == (Part("dst", 4, 4),)
    part = good["parts"][0]  # type: ignore[index]
    wrongs: list[dict[str, object]] = [
        {"key_size": 300}, {"type": 3}, {"max_entries": 0}, {"max_entries": "4"},
        {"parts": []}, {"parts": [{**part, "at": 5}]}, {"parts": [{**part, "at": -1}]},
        {"parts": [{**part, "size": 8}]}, {"parts": [{**part, "field": "r1 = 0"}]},
        {"parts": [{**part, "at": "4"}]}, {"map": 1}, {"more": 1}, {"parts": 7}]
    for wrong in wrongs:
        with pytest.raises((ValueError, TypeError, KeyError)):
            shape_of({**good, **wrong})


pytestmark = needs_bpf()
