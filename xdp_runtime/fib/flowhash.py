"""Which leg of a multipath route a packet takes: fib_multipath_hash, rt6_multipath_hash.

The kernel hashes with SipHash under a seed.  Where net.ipv4.fib_multipath_hash_seed is set, the
leg is the kernel's; where it is 0 (the default), the kernel drew a secret, and the leg is one of
ours, of the same shares and the same for all packets of a flow.  The record hashed is struct
flow_keys from `basic` on: 48 bytes for IPv4, 72 for IPv6, nearly all of it zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdp_runtime.fib.host import INET, Settings, bytes_of
from xdp_runtime.siphash import siphash

KEYS_BYTES, KEYS6_BYTES = 48, 72
KEYS_PROTOCOL, KEYS_LABEL, KEYS_PORTS, KEYS_SOURCE = 2, 4, 28, 36
BY_SOURCE, BY_DESTINATION, BY_PROTOCOL, BY_LABEL, BY_SPORT, BY_DPORT = 1, 2, 4, 8, 16, 32
_OUTER = 63


@dataclass(frozen=True, slots=True)
class Flow:
    """Ports and label are as they lie in the packet."""

    family: int
    source: int
    destination: int
    protocol: int
    ports: bytes
    label: bytes = bytes(4)


def fields_of(settings: Settings, family: int) -> int:
    """What is hashed, in the bits of fib_multipath_hash_fields; 0: nothing, and the hash is 0."""
    four = family == INET
    policy = settings.hash_policy if four else settings.hash_policy6
    custom = settings.hash_fields if four else settings.hash_fields6
    by_addresses = BY_SOURCE | BY_DESTINATION
    layer3 = by_addresses if four else by_addresses | BY_PROTOCOL | BY_LABEL
    layer4 = by_addresses | BY_PROTOCOL | BY_SPORT | BY_DPORT
    # policy 2 looks at inner headers, which nobody has here
    return (layer3, layer4, layer3, custom & _OUTER)[policy & 3]


def multipath_hash(settings: Settings, flow: Flow) -> int:
    """31 bits."""
    fields = fields_of(settings, flow.family)
    if not fields:
        return 0
    size = 4 if flow.family == INET else 16
    source = bytes_of(flow.source, flow.family) if fields & BY_SOURCE else bytes(size)
    destination = bytes_of(flow.destination, flow.family) if fields & BY_DESTINATION \
        else bytes(size)
    sport = flow.ports[:2] if fields & BY_SPORT else bytes(2)
    dport = flow.ports[2:] if fields & BY_DPORT else bytes(2)
    # the same for both directions of a flow
    if flow.family == INET:
        swapped = destination[::-1] < source[::-1]
    else:
        swapped = destination < source
    if swapped:
        source, destination = destination, source
    if dport[::-1] < sport[::-1]:
        sport, dport = dport, sport
    keys = bytearray(KEYS_BYTES if flow.family == INET else KEYS6_BYTES)
    if fields & BY_PROTOCOL:
        keys[KEYS_PROTOCOL] = flow.protocol
    if fields & BY_LABEL:
        keys[KEYS_LABEL : KEYS_LABEL + 4] = bytes((0, flow.label[1] & 15, *flow.label[2:]))
    keys[KEYS_PORTS : KEYS_PORTS + 4] = sport + dport
    keys[KEYS_SOURCE : KEYS_SOURCE + 2 * size] = source + destination
    seed = settings.seed or 1
    key = seed.to_bytes(4, "little") * 4
    return (siphash(bytes(keys), key) & 0xFFFFFFFF or 1) >> 1
