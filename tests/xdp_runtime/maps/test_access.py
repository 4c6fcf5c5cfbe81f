"""BPF_F_RDONLY and BPF_F_WRONLY: what user space may do, as in the kernel."""

from __future__ import annotations

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.maps.traces import Step, apply, compiled_map
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.object import MapFlag, MapSpec, MapType

KINDS = (MapType.HASH, MapType.ARRAY, MapType.LRU_HASH, MapType.LPM_TRIE)


def answer(one: object, operation: str, *arguments: object) -> int | str:
    try:
        getattr(one, operation)(*arguments)
    except OSError as error:
        return error.errno or 0
    return "done"


@pytest.mark.parametrize("flags", [0, MapFlag.RDONLY, MapFlag.WRONLY])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.root
@needs_bpf()[1]
def test_as_the_kernel(kind: MapType, flags: int) -> None:
    trie = kind == MapType.LPM_TRIE
    spec = MapSpec("m", kind, 8 if trie else 4, 4, 4,
                   flags=flags | (MapFlag.NO_PREALLOC if trie else 0))
    key = bytes([8, 0, 0, 0, 1, 0, 0, 0])[:spec.key_size] if trie else bytes(4)
    steps = [Step("update", key, b"1234"), Step("lookup", key), Step("update", key, b"4321", 1),
             Step("delete", key)]
    with KernelMap(spec) as kernel, compiled_map(spec) as ours:
        for step in steps:
            assert apply(ours, step) == apply(kernel, step), step
        assert answer(ours, "next_key") == answer(kernel, "next_key")
        if kind in (MapType.HASH, MapType.LRU_HASH):
            assert answer(ours, "lookup_and_delete", key) == answer(
                kernel, "lookup_and_delete", key)
