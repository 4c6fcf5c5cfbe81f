"""Capabilities: for each kind of grant a program that needs it, refused without, accepted with."""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.xdp_runtime.verifier.cases import parse_map
from xdp_runtime.asm import assemble
from xdp_runtime.elf import read_object
from xdp_runtime.errors import ConfigError, LoadError, VerifyError
from xdp_runtime.interp import Machine
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.policy import (
    ALL,
    Constraint,
    ExtensionClass,
    check,
    enforce,
    find_missing,
    infer,
    parse_constraint,
)
from xdp_runtime.policy_binary import canonical, check_host, derive_host
from xdp_runtime.policy_file import parse_class, read_policy, to_yaml
from xdp_runtime.policy_host import XDP_HOST, parse_host, read_host
from xdp_runtime.policy_host import to_yaml as host_to_yaml
from xdp_runtime.policy_uses import MAX_TAIL_CALLS, Use, Uses, find_uses
from xdp_runtime.policy_yaml import parse_yaml
from xdp_runtime.verifier import scalar

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PROGRAMS = ROOT / "tests" / "xdp_runtime" / "programs"
MAPS = ("table hash 4 8 16", "cell array 4 8 1", "ports devmap 4 4 4", "programs prog_array 4 4 4")
PARSE = """
    r6 = r1
    r7 = *(u32 *)(r1 + 0)
    r8 = *(u32 *)(r1 + 4)
    r2 = r7
    r2 += 64
    if r2 > r8 goto out
"""
PASS = """
    out:
    r0 = 2
    exit
"""
LOOKUP = """
    *(u32 *)(r10 - 4) = 0
    r2 = r10
    r2 += -4
    r1 = map[table] ll
    call bpf_map_lookup_elem
    if r0 == 0 goto out
"""


def make(text: str, *more: str) -> Object:
    """Programs of one object: the first is what is bound."""
    specs = tuple(parse_map(one) for one in MAPS)
    names = [spec.name for spec in specs]
    programs = tuple(ProgramSpec(name, "xdp", "xdp", assemble(one, names))
                     for name, one in zip(("main", "second"), (text, *more), strict=False))
    return Object("made", programs, specs, "GPL")


def class_of(text: str) -> ExtensionClass:
    return parse_class("made", parse_yaml("entry: xdp\n" + text, "made.yaml"), XDP_HOST)


@dataclass(frozen=True)
class Grant:
    """A program, the grants it keeps to, the same without one, and what is said then."""

    text: str
    enough: str
    without: str
    says: str
    insn: int


GRANTS = {
    "packet_read": Grant(
        PARSE + "r0 = *(u32 *)(r7 + 20)" + PASS, "packet: {read: 24}\nverdicts: XDP_PASS",
        "packet: {read: 23}\nverdicts: XDP_PASS",
        "reads the packet up to byte 24, class made grants only its first 23 bytes", 6),
    "packet_none": Grant(
        PARSE + "r0 = *(u8 *)(r7 + 0)" + PASS, "packet: {read: all}\nverdicts: XDP_PASS",
        "packet: none\nverdicts: XDP_PASS", "class made grants none of it", 6),
    "packet_variable": Grant(
        PARSE + "r3 = *(u8 *)(r7 + 0)\nr3 &= 15\nr7 += r3\nr2 = r7\nr2 += 1\nif r2 > r8 goto out\n"
        "r0 = *(u8 *)(r7 + 0)" + PASS, "packet: {read: 16}\nverdicts: XDP_PASS",
        "packet: {read: 15}\nverdicts: XDP_PASS", "up to byte 16", 12),
    "packet_read_by_helper": Grant(
        PARSE + "r2 = r7\nr2 += 10\nr1 = map[table] ll\ncall bpf_map_delete_elem" + PASS,
        "packet: {read: 14}\nmaps: {table: write}\nhelpers: map_delete_elem\nverdicts: XDP_PASS",
        "packet: {read: 13}\nmaps: {table: write}\nhelpers: map_delete_elem\nverdicts: XDP_PASS",
        "reads the packet up to byte 14", 10),
    "packet_write": Grant(
        PARSE + "*(u16 *)(r7 + 12) = 0" + PASS,
        "packet: {read: 64, write: 14}\nverdicts: XDP_PASS",
        "packet: {read: 64}\nverdicts: XDP_PASS", "writes the packet up to byte 14", 6),
    "packet_resize": Grant(
        "r2 = -4\ncall bpf_xdp_adjust_tail" + PASS,
        "packet: {resize: true}\nhelpers: xdp_adjust_tail\nverdicts: XDP_PASS",
        "packet: {read: all, write: all}\nhelpers: xdp_adjust_tail\nverdicts: XDP_PASS",
        "changes the packet's size", 1),
    "head_moved_inward": Grant(
        PARSE + "r0 = *(u8 *)(r7 + 0)\nr1 = r6\nr2 = 20\ncall bpf_xdp_adjust_head" + PASS,
        "packet: {read: all, resize: true}\nhelpers: xdp_adjust_head\nverdicts: XDP_PASS",
        "packet: {read: 64, resize: true}\nhelpers: xdp_adjust_head\nverdicts: XDP_PASS",
        "without a limit (xdp_adjust_head may have moved its start inward)", 6),
    "head_moved_outward": Grant(
        PARSE + "r0 = *(u8 *)(r7 + 0)\nr1 = r6\nr2 = -20\ncall bpf_xdp_adjust_head" + PASS,
        "packet: {read: 1, resize: true}\nhelpers: xdp_adjust_head\nverdicts: XDP_PASS",
        "packet: {read: 1, resize: false}\nhelpers: xdp_adjust_head\nverdicts: XDP_PASS",
        "changes the packet's size", 9),
    "meta_read": Grant(
        "r7 = *(u32 *)(r1 + 8)\nr8 = *(u32 *)(r1 + 0)\nr2 = r7\nr2 += 4\nif r2 > r8 goto out\n"
        "r0 = *(u32 *)(r7 + 0)" + PASS, "meta: read\nverdicts: XDP_PASS",
        "meta: none\nverdicts: XDP_PASS", "reads the packet's metadata", 5),
    "meta_write": Grant(
        "r7 = *(u32 *)(r1 + 8)\nr8 = *(u32 *)(r1 + 0)\nr2 = r7\nr2 += 4\nif r2 > r8 goto out\n"
        "*(u32 *)(r7 + 0) = 1" + PASS, "meta: [read, write]\nverdicts: XDP_PASS",
        "meta: [read]\nverdicts: XDP_PASS", "writes the packet's metadata", 5),
    "meta_room": Grant(
        "r2 = -4\ncall bpf_xdp_adjust_meta" + PASS,
        "meta: [write]\nhelpers: xdp_adjust_meta\nverdicts: XDP_PASS",
        "meta: [read]\nhelpers: xdp_adjust_meta\nverdicts: XDP_PASS",
        "writes the packet's metadata", 1),
    "context": Grant(
        "r0 = *(u32 *)(r1 + 16)" + PASS, "context: rx_queue_index\nverdicts: XDP_PASS",
        "context: ingress_ifindex\nverdicts: XDP_PASS", "reads rx_queue_index", 0),
    "helper": Grant(
        "call bpf_ktime_get_ns" + PASS, "helpers: [ktime_get_ns]\nverdicts: XDP_PASS",
        "helpers: [get_prandom_u32]\nverdicts: XDP_PASS", "calls ktime_get_ns", 0),
    "map_read": Grant(
        LOOKUP + "r0 = *(u64 *)(r0 + 0)" + PASS,
        "maps: {table: read}\nhelpers: map_lookup_elem\nverdicts: XDP_PASS",
        "maps: {cell: [read, write]}\nhelpers: map_lookup_elem\nverdicts: XDP_PASS",
        "reads map table", 5),
    "map_write": Grant(
        LOOKUP + "*(u64 *)(r0 + 0) = 1" + PASS,
        "maps: {table: [read, write]}\nhelpers: map_lookup_elem\nverdicts: XDP_PASS",
        "maps: {table: [read]}\nhelpers: map_lookup_elem\nverdicts: XDP_PASS",
        "writes map table", 7),
    "map_write_by_helper": Grant(
        "*(u32 *)(r10 - 4) = 0\nr2 = r10\nr2 += -4\nr1 = map[table] ll\n"
        "call bpf_map_delete_elem" + PASS,
        "maps: {table: write}\nhelpers: map_delete_elem\nverdicts: XDP_PASS",
        "maps: {table: read}\nhelpers: map_delete_elem\nverdicts: XDP_PASS",
        "writes map table", 5),
    "global": Grant(
        "r1 = map_value[cell]+0 ll\n*(u64 *)(r1 + 0) = 1" + PASS,
        "maps: {cell: write}\nverdicts: XDP_PASS", "maps: {cell: read}\nverdicts: XDP_PASS",
        "writes map cell", 2),
    "verdict": Grant(
        "r0 = 1\nexit", "verdicts: XDP_DROP", "verdicts: [XDP_PASS, XDP_TX]",
        "may return XDP_DROP", 1),
    "verdict_of_a_map": Grant(
        LOOKUP + "r0 = *(u64 *)(r0 + 0)\nr0 &= 3\nexit" + PASS,
        "maps: {table: read}\nhelpers: map_lookup_elem\n"
        "verdicts: [XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX]",
        "maps: {table: read}\nhelpers: map_lookup_elem\nverdicts: [XDP_ABORTED, XDP_DROP, "
        "XDP_PASS]", "may return XDP_TX", 9),
    "no_verdict": Grant(
        "r0 = 77\nexit", "verdicts: XDP_ABORTED", "verdicts: XDP_PASS",
        "may return XDP_ABORTED (by a number that is no verdict)", 1),
    "redirect": Grant(
        "r1 = 3\nr2 = 0\ncall bpf_redirect\nexit",
        "helpers: [redirect: [ifindex in 2, 3, flags == 0]]\n"
        "verdicts: [XDP_REDIRECT, XDP_ABORTED]".replace("ifindex in 2, 3", "'ifindex in 2, 3'"),
        "helpers: [redirect: 'ifindex == 2']\nverdicts: [XDP_REDIRECT, XDP_ABORTED]",
        "class made grants redirect only with ifindex == 2, which is not proven of this call: "
        "ifindex is 3", 2),
    "instructions": Grant(
        "r0 = 2\nif r1 != 0 goto out\nr2 = 1\nr2 = 2\nout:\nexit",
        "verdicts: XDP_PASS\ninstructions: 5", "verdicts: XDP_PASS\ninstructions: 2",
        "class made grants 2 instructions, the program's longest path has ", 0),
}


@pytest.mark.parametrize("grant", GRANTS.values(), ids=GRANTS)
def test_each_grant(grant: Grant) -> None:
    obj = make(grant.text)
    enforce(obj, obj.programs[0], class_of(grant.enough))
    with pytest.raises(VerifyError) as refused:
        enforce(obj, obj.programs[0], class_of(grant.without))
    assert grant.says in str(refused.value)
    assert refused.value.insn == grant.insn and refused.value.exit_code == 4
    assert "grant `" in refused.value.mend or "check `" in refused.value.mend


def test_nothing_is_granted_by_default() -> None:
    obj = make("r0 = 2\nexit")
    with pytest.raises(VerifyError, match="XDP_PASS"):
        enforce(obj, obj.programs[0], ExtensionClass("empty"))


def test_unsafe_program_is_refused_as_such() -> None:
    obj = make("r0 = *(u64 *)(r1 + 100)\nexit")
    with pytest.raises(VerifyError, match="struct xdp_md"):
        enforce(obj, obj.programs[0], class_of("verdicts: XDP_PASS"))


def test_every_lack_is_listed() -> None:
    obj = read_object(EXAMPLES / "firewall.o")
    grants = class_of("packet: {read: 64}\nhelpers: map_lookup_elem\nverdicts: XDP_PASS")
    missing = check(obj, obj.program(), grants)
    assert {one.use.kind for one in missing} == {"packet.read", "map.read", "map.write", "verdict"}
    with pytest.raises(VerifyError, match=f"{len(missing) - 1} more") as refused:
        enforce(obj, obj.program(), grants)
    assert len(refused.value.detail.splitlines()) == len(missing)


def test_a_dynptr_of_the_packet_is_the_packet() -> None:
    """What is read and written through it has no limits that are known."""
    obj = read_object(FUNCTIONS[0])
    grants = class_of("packet: {read: 64, write: 64}\nhelpers: [dynptr_from_xdp, dynptr_slice]\n"
                      "verdicts: XDP_PASS")
    missing = {(one.use.kind, one.use.name) for one in check(obj, obj.program("whole"), grants)}
    assert {("packet.read", ""), ("packet.write", ""), ("helper", "dynptr_copy")} <= missing
    assert ("helper", "dynptr_slice") not in missing


# ---- what pruning must not hide ------------------------------------------------------------------
def test_verdicts_of_paths_that_meet() -> None:
    """The second way into `join` differs only in r6, which nothing but the verdict depends on."""
    body = "".join("r3 = 0\n" for _ in range(20))
    obj = make(f"r2 = *(u32 *)(r1 + 16)\nr6 = 2\nif r2 == 7 goto join\nr6 = 1\njoin:\n{body}"
               "if r2 == 9 goto end\nr3 = 1\nend:\nr0 = r6\nexit")
    assert infer("made", find_uses(obj, obj.programs[0])).verdicts == {"XDP_DROP", "XDP_PASS"}


def test_arguments_of_paths_that_meet() -> None:
    body = "".join("r3 = 0\n" for _ in range(20))
    obj = make(f"r7 = *(u32 *)(r1 + 16)\nr6 = 2\nif r7 == 7 goto join\nr6 = 5\njoin:\n{body}"
               "if r7 == 9 goto end\nr3 = 1\nend:\nr1 = r6\nr2 = 0\ncall bpf_redirect\nexit")
    base = "context: rx_queue_index\nverdicts: [XDP_ABORTED, XDP_REDIRECT]\n"
    enforce(obj, obj.programs[0], class_of(base + "helpers: [redirect: 'ifindex <= 5']"))
    with pytest.raises(VerifyError, match="ifindex == 2"):
        enforce(obj, obj.programs[0], class_of(base + "helpers: [redirect: ifindex == 2]"))


# ---- the longest path ----------------------------------------------------------------------------
def longest(text: str, *more: str) -> int:
    obj = make(text, *more)
    return find_uses(obj, obj.programs[0]).longest


def test_longest_path() -> None:
    assert longest("r0 = 2\nexit") == 2
    branch = "r2 = *(u32 *)(r1 + 16)\nr0 = 2\nif r2 == 1 goto a\nr3 = 0\nr3 = 0\na:\nexit"
    assert longest(branch) == 6
    loop = "r2 = 0\nr0 = 2\nagain:\nr2 += 1\nif r2 < 10 goto again\nexit"
    assert longest(loop) == 2 + 10 * 2 + 1
    called = "call one\nr6 = r0\ncall one\nr0 = 2\nexit\none:\nr1 = 0\nr0 = 0\nexit"
    assert longest(called) == 5 + 2 * 3
    bounded = ("r2 = *(u32 *)(r1 + 16)\nr2 &= 15\nr0 = 2\nr3 = 0\nagain:\nif r3 >= r2 goto out\n"
               "r3 += 1\ngoto again\nout:\nexit")
    assert longest(bounded) == 4 + 15 * 3 + 1 + 1


def test_longest_path_through_tail_calls() -> None:
    """However often: the second may call itself as well."""
    jump = "r2 = map[programs] ll\nr3 = 0\ncall bpf_tail_call\nr0 = 2\nexit"
    assert longest(jump, "r0 = 1\nexit") == 5 * (MAX_TAIL_CALLS + 1)
    assert longest("r0 = 2\nexit", jump) == 2


def test_what_can_be_neither_proven_nor_counted_is_refused() -> None:
    uses = Uses((Use("main", 0, "instructions", amount=-2, note="instruction 4 calls loop, and "
                     "instruction 2 takes what has to be given back"),), ())
    (missing,) = find_missing(class_of("instructions: 1000"), uses)
    assert missing.text == (
        "class made grants 1000 instructions, and no limit of this program's can be proven, nor "
        "can it be counted while it runs: instruction 4 calls loop, and instruction 2 takes what "
        "has to be given back")
    assert find_missing(class_of("packet: none"), uses) == []
    assert infer("made", uses).instructions is None
    counted = Uses((Use("main", 0, "instructions", amount=-1, note="loop"),), ())
    assert find_missing(class_of("instructions: 1000"), counted) == []


def test_longest_path_and_verdicts_bound_what_runs() -> None:
    """Random packets through every example: never longer, never another verdict."""
    rng = random.Random(7)
    for path in sorted(EXAMPLES.glob("*.o")):
        obj = read_object(path)
        uses = find_uses(obj, obj.program())
        grants = infer("any", uses)
        machine = Machine(obj, obj.program())
        for _ in range(60):
            packet = bytearray(rng.randbytes(rng.choice((14, 60, 128))))
            kind = rng.choice((b"\x08\x00\x45", b"\x86\xdd\x60", b"\x08\x06\x00", b"\x81\x00\x00"))
            packet[12:15] = kind
            if len(packet) > 23:
                packet[23] = rng.choice((1, 6, 17))
            result = machine.run(bytes(packet))
            assert result.steps <= uses.longest
            assert f"XDP_{('ABORTED', 'DROP', 'PASS', 'TX', 'REDIRECT')[result.verdict]}" in (
                grants.verdicts)


# ---- infer ---------------------------------------------------------------------------------------
FUNCTIONS = [ROOT / "tests" / "xdp_runtime" / "helpers" / f"{name}.o"
             for name in ("slices", "iterators", "text")]
OBJECTS = [*sorted(EXAMPLES.glob("*.o")), *sorted(PROGRAMS.glob("*.o")), *FUNCTIONS]


@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: p.stem)
def test_inferred_class_is_enough_and_least(path: Path, tmp_path: Path) -> None:
    obj = read_object(path)
    for program in obj.programs:
        uses = find_uses(obj, program)
        grants = infer(program.name, uses)
        file = tmp_path / f"{program.name}.yaml"
        file.write_text(to_yaml(grants))
        again = read_policy(file).of(program.name)
        assert again == grants
        assert check(obj, program, again) == []
        if path.parent == EXAMPLES:
            for less in shrunk(grants):
                assert check(obj, program, less), less


def shrunk(grants: ExtensionClass) -> list[ExtensionClass]:
    """Each with one thing less."""
    out = [replace(grants, verdicts=grants.verdicts - {word}) for word in grants.verdicts]
    out += [replace(grants, context=grants.context - {word}) for word in grants.context]
    out += [replace(grants, meta=grants.meta - {word}) for word in grants.meta]
    out += [replace(grants, helpers={k: v for k, v in grants.helpers.items() if k != name})
            for name in grants.helpers]
    out += [replace(grants, maps={**grants.maps, name: words - {word}})
            for name, words in grants.maps.items() for word in words]
    for size in ("packet_read", "packet_write", "instructions"):
        count = getattr(grants, size)
        if count:
            out.append(replace(grants, **{size: count - 1}))
    if grants.packet_resize:
        out.append(replace(grants, packet_resize=False))
    return out


# ---- constraints ---------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["n == 3", "n != 3", "n < 3", "n <= 3", "n > 3", "n >= 3",
                                  "n in 1, 3", "n == -1", "n > -2"])
def test_constraints_hold_for_every_value(text: str) -> None:
    constraint = parse_constraint(text)
    for low in range(6):
        for high in range(low, 6):
            known = scalar.from_range(low, high)
            for c_type in ("u32", "s32", "u64", "s64"):
                expected = all(constraint.allows(n) for n in range(low, high + 1))
                assert constraint.holds(known, c_type) == expected, (low, high, c_type)
    minus = scalar.const((1 << 64) - 1)
    assert constraint.holds(minus, "s64") == constraint.allows(-1)
    assert constraint.holds(minus, "u32") == constraint.allows(0xFFFFFFFF)


def test_constraint_of_bits() -> None:
    four_or_none = scalar.union(scalar.const(0), scalar.const(4))
    assert Constraint("n", "in", (0, 4)).holds(four_or_none, "u64")
    assert not Constraint("n", "in", (0, 3)).holds(four_or_none, "u64")
    assert Constraint("n", "!=", (3,)).holds(four_or_none, "u64")
    assert not Constraint("n", "==", (3,)).holds(scalar.UNKNOWN, "u64")


@pytest.mark.parametrize("text", ["", "n", "n ==", "n == x", "n == 1, 2", "3 == n", "n == 1.5"])
def test_bad_constraints(text: str) -> None:
    with pytest.raises(ValueError):
        parse_constraint(text)


# ---- files ---------------------------------------------------------------------------------------
BAD = {
    "class: {}": "made.yaml:1: a policy has no key 'class' (it may have: host, classes)",
    "classes: {a: {}}": "made.yaml:1: class a has no entry (add `entry: xdp`)",
    "classes:\n  a: {entry: tc}": "made.yaml:2: entry 'tc' is not known (there are: xdp)",
    "classes:\n  a:\n    entry: xdp\n    packets: all": "made.yaml:4: class a has no key 'packets'",
    "classes: {a: {entry: xdp, packet: {read: -1}}}": "packet read is -1, must be from 0 to 65536",
    "classes: {a: {entry: xdp, packet: {read: lots}}}": "must be a number of bytes, all or none",
    "classes: {a: {entry: xdp, packet: 64}}": "packet is the number 64, must be a mapping",
    "classes: {a: {entry: xdp, packet: {resize: 1}}}": "must be true or false",
    "classes: {a: {entry: xdp, helpers: [map_lookup]}}": "helper 'map_lookup' does not exist",
    "classes: {a: {entry: xdp, helpers: [redirect, bpf_redirect]}}": "redirect is there twice",
    "classes: {a: {entry: xdp, helpers: [redirect: [queue == 1]]}}": (
        "helper redirect has no argument 'queue' (it has: ifindex, flags"),
    "classes: {a: {entry: xdp, helpers: [redirect: [ifindex]]}}": "is not a constraint",
    "classes: {a: {entry: xdp, maps: {m: [reed]}}}": "'reed' is not known (one of: read, write)",
    "classes: {a: {entry: xdp, maps: [m]}}": "maps is a list, must be a mapping",
    "classes: {a: {entry: xdp, verdicts: [PASS]}}": "verdicts: 'PASS' is not known",
    "classes: {a: {entry: xdp, verdicts: [XDP_TX, XDP_TX]}}": "verdicts has XDP_TX twice",
    "classes: {a: {entry: xdp, instructions: 0}}": "instructions is 0, must be from 1",
    "classes: {a: {entry: xdp, instructions: true}}": "instructions is true, must be a number",
    "classes: {a: {entry: xdp, capabilities: [x]}}": "capabilities: 'x' is not known",
    "classes: {a: {entry: xdp}, a: {entry: xdp}}": "key 'a' is there twice",
    "classes: {a: &x {entry: xdp}, b: *x}": "is used twice, by an anchor and an alias",
    "classes: {a: !!python/name:os.system x}": "is not taken",
    "classes:": "classes is empty, must be a mapping",
    "classes: {}": "has no class",
    "": "a policy is empty, must be a mapping",
    "classes: [": "made.yaml:1: is not YAML: expected the node content",
    "\t": "is not YAML",
    "[" * 5000: "nests too deep",
    "classes: {1: 2}": "a key is the number 1, must be a word",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_bad_policies(text: str, tmp_path: Path) -> None:
    file = tmp_path / "made.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_policy(file)
    assert BAD[text] in str(error.value)
    assert "\n" not in str(error.value) and error.value.exit_code == 2


def test_unreadable_policies(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_policy(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_policy(tmp_path / "bytes.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(ConfigError, match="larger than"):
        read_policy(tmp_path / "large.yaml")


def test_capabilities_of_the_dataplane() -> None:
    """The short way to say that something is granted without a limit."""
    grants = class_of("capabilities: [packet.read, meta.write, rx_queue_index]")
    assert (grants.packet_read, grants.packet_write) == (ALL, 0)
    assert grants.meta == {"write"} and grants.context == {"rx_queue_index"}


def test_choosing_a_class() -> None:
    policy = read_policy(EXAMPLES / "policy" / "classes.yaml")
    assert policy.of("observe").verdicts == {"XDP_PASS"}
    with pytest.raises(ConfigError, match="class 'spy': is not in .*it has: observe, firewall"):
        policy.of("spy")
    with pytest.raises(ConfigError, match="several classes"):
        policy.of(None)


# ---- hosts ---------------------------------------------------------------------------------------
POLICIES = EXAMPLES / "policy"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_host(tmp_path_factory.mktemp("web") / "web")


def compile_host(out: Path, *flags: str) -> Path:
    try:
        subprocess.run(["gcc", "-g", "-O1", "-o", out, *flags, POLICIES / "web.c"], check=True,
                       capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs gcc")
    return out


def test_host_agrees_with_its_binary(web: Path) -> None:
    host = read_host(POLICIES / "web.yaml")
    assert check_host(host, web) == []
    assert host.functions["now"].require == (Constraint("return", ">", (0,)),)


def test_host_derived_from_its_binary(web: Path) -> None:
    """The annotations of web.c say what web.yaml says."""
    derived = derive_host(web)
    again = parse_host(parse_yaml(host_to_yaml(derived), "derived.yaml"))
    assert again == derived
    written = read_host(POLICIES / "web.yaml")
    assert derived.state == written.state and derived.entries == written.entries
    assert set(derived.functions) == set(written.functions)
    assert derived.functions["respond"].require == written.functions["respond"].require
    assert check_host(derived, web) == []


def test_host_by_btf(web: Path, tmp_path: Path) -> None:
    """Types of a binary without DWARF, from BTF, as an object of clang has."""
    try:
        subprocess.run(["clang", "-target", "bpf", "-g", "-O1", "-c", "-x", "c", "-", "-o",
                        tmp_path / "host.o"], check=True, capture_output=True, input=BTF_HOST)
        subprocess.run(["llvm-objcopy", "--remove-section=.debug*", "--remove-section=.rel.debug*",
                        tmp_path / "host.o"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs clang and llvm-objcopy")
    text = (POLICIES / "web.yaml").read_text()
    wrong = check_host(parse_host(parse_yaml(text, "web.yaml")), tmp_path / "host.o")
    assert {one.name for one in wrong} == {"respond", "readRequest"}
    assert any("returns void, not int" in one.text for one in wrong)


BTF_HOST = b"""
typedef int pid_t; typedef long time_t;
typedef struct web_request { const char *method, *uri, *agent; int status; } web_request_t;
pid_t web_pid = 1;
time_t web_now(void) { return web_pid; }
void web_respond(web_request_t *request, int status, const char *text) { request->status = status; }
void web_process_request(struct web_request *request) { request->status = 1; }
"""

DRIFT = {
    ("web_pid, type: pid_t", "web_pid, type: long"): "variable web_pid is pid_t, not long",
    ("web_pid, type: pid_t", "web_ppid, type: pid_t"): "has no variable web_ppid",
    ("struct: web_request_t", "struct: web_reply_t"): "has no type web_reply_t with members",
    ("agent, client]", "agent, cookies]"): "web_request_t has no member cookies; it has method",
    ("symbol: web_now", "symbol: web_then"): "has no function web_then",
    ("returns: time_t", "returns: time_t *"): "web_now returns time_t, not time_t *",
    ("status: int", "status: unsigned"): "argument status of web_respond is int, not unsigned",
    ("status: int, ", "code: int, "): "argument code of web_respond is called status",
    (", text: const char *}", "}"): "web_respond takes 3 arguments, 2 are declared",
    ("[request != 0", "[request > 5"): "of a pointer only `!= 0` or `== 0` can be asked",
}


@pytest.mark.parametrize("change", DRIFT, ids=lambda c: c[1])
def test_host_that_drifted(change: tuple[str, str], web: Path) -> None:
    text = (POLICIES / "web.yaml").read_text()
    assert text.count(change[0]) == 1
    text = text.replace(*change)
    if change[1].startswith("code"):
        text = text.replace("status >= 400, status <= 599", "code >= 400")
    wrong = check_host(parse_host(parse_yaml(text, "web.yaml")), web)
    assert any(DRIFT[change] in one.text for one in wrong), wrong


def test_types_have_several_names(web: Path) -> None:
    text = (POLICIES / "web.yaml").read_text()
    text = text.replace("web_request_t *", "struct web_request *").replace("type: pid_t",
                                                                           "type: int")
    text = text.replace("returns: time_t", "returns: long int")
    assert check_host(parse_host(parse_yaml(text, "web.yaml")), web) == []
    assert canonical("const long unsigned int*") == canonical("unsigned long *")
    assert canonical("char") != canonical("unsigned char")


def test_stripped_binary(web: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run(["strip", "-o", bare, web], check=True)
    with pytest.raises(LoadError, match="neither DWARF nor BTF.*compile it with -g"):
        check_host(read_host(POLICIES / "web.yaml"), bare)
    (tmp_path / "text").write_text("no ELF")
    with pytest.raises(LoadError, match="not a readable ELF file"):
        check_host(read_host(POLICIES / "web.yaml"), tmp_path / "text")
    with pytest.raises(LoadError, match="No such file"):
        derive_host(tmp_path / "none")


BAD_HOSTS = {
    "state: {}": "has no name (add `host: NAME`)",
    "host: h\nstate: {a: {variable: x, type: int}}": "state a has no access",
    "host: h\nstate: {a: {access: read}}": "needs either a variable or a struct",
    "host: h\nstate: {a: {variable: x, access: read}}": "state a has no type",
    "host: h\nstate: {a: {variable: x, type: int, access: none}}": "grants nothing",
    "host: h\nfunctions: {f: {returns: int}}": "function f has no symbol",
    "host: h\nfunctions: {f: {symbol: f, require: [return > 0]}}": "returns nothing to constrain",
    "host: h\nfunctions: {f: {symbol: f, require: [x > 0]}}": "has no argument 'x'",
    "host: h\nentries: {xdp: {symbol: f}}": "is the dataplane's own entry",
    "host: h\nentries: {e: {symbol: f}}\nfunctions: {e: {symbol: f}}": "'e' is declared twice",
    "host: h\nhooks: {}": "a host has no key 'hooks'",
}


@pytest.mark.parametrize("text", BAD_HOSTS, ids=range(len(BAD_HOSTS)))
def test_bad_hosts(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_host(parse_yaml(text, "host.yaml"))
    assert BAD_HOSTS[text] in str(error.value) and "host.yaml:" in str(error.value)


def test_classes_of_a_process() -> None:
    """They are read and checked against the host; binding them to processes comes later."""
    policy = read_policy(POLICIES / "web-classes.yaml")
    assert policy.of("observe").capabilities == {"readPid", "readRequest", "now"}
    assert "respond" not in policy.of("observe").capabilities
    assert policy.of("firewall").capabilities == {"readRequest", "respond"}
    obj = make("r0 = 2\nexit")
    with pytest.raises(ConfigError, match="cannot be bound to entries in processes yet"):
        enforce(obj, obj.programs[0], policy.of("observe"))
    host = read_host(POLICIES / "web.yaml")
    for key, text in {"capabilities: [writePid]": "'writePid' is not known",
                      "verdicts: [XDP_PASS]": "entry processBegin has no verdicts",
                      "packet: none": "entry processBegin has no packet"}.items():
        with pytest.raises(ConfigError, match=text):
            parse_class("c", parse_yaml(f"entry: processBegin\n{key}", "c.yaml"), host)
