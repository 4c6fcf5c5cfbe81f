"""Four engines behind one shape: load an Object, run a batch, operate on maps, show contents."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import numpy as np

from bench.fuzz.batch import HEADER, SLOT, UNIT, Batch, Header, Slots
from bench.fuzz.rings import take_records
from xdp_runtime.bpf_syscall import info
from xdp_runtime.compiler import target
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import KernelProgram, load_into_kernel
from xdp_runtime.maps.model import ModelPerCpuHash
from xdp_runtime.object import MapSpec, MapType, Object
from xdp_runtime.program import Program, load

LISTS = (MapType.QUEUE, MapType.STACK)
OF_MAPS = (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)
UNSEEN = (MapType.PROG_ARRAY, *OF_MAPS)  # what they hold is not compared
_VERIFIED_INSNS = 224  # offset in struct bpf_prog_info
PER_CPU = (MapType.PERCPU_ARRAY, MapType.PERCPU_HASH)
Contents = dict[str, Any]
Step = tuple[str, str, bytes, bytes, int]  # map, operation, key, value, flags


class Engine(Protocol):
    name: str

    def run(self, batch: Batch) -> tuple[Header, Slots]: ...

    def operate(self, step: Step) -> Any:
        """A value, None, or 0 or -errno."""

    def contents(self, spec: MapSpec) -> Any:
        """What the map holds; values of a queue or stack, and records of a ring, are taken out."""


class Interpreted:
    name = "interpreter"

    def __init__(self, obj: Object) -> None:
        self.machine = Machine(obj, obj.programs[0])
        self.maps = {model.spec.name: model for model in self.machine.maps}

    def run(self, batch: Batch) -> tuple[Header, Slots]:
        headers = np.zeros(len(batch.packets), HEADER)
        out = np.zeros((len(batch.packets), SLOT), np.uint8)
        for number, packet in enumerate(batch.packets):
            result = self.machine.run(packet, ingress_ifindex=1)
            content = result.meta + result.data_out
            headers[number] = (result.verdict, len(result.meta), len(content))
            out[number, : len(content)] = np.frombuffer(content, np.uint8)
        return headers, out

    def operate(self, step: Step) -> Any:
        name, operation, key, value, flags = step
        model: Any = self.maps[name]
        match operation:
            case "update" if isinstance(model, ModelPerCpuHash):
                return model.update_all(key, [value], flags)
            case "update":
                return model.update(key, value, flags)
            case "delete":
                if model.spec.type in OF_MAPS:
                    return 0 if model.inner.pop(key, None) else self.missing(model.spec, key)
                return model.delete(key)
            case "point" if model.spec.type in OF_MAPS:
                if model.spec.type == MapType.ARRAY_OF_MAPS and self.missing(
                        model.spec, key) == -errno.E2BIG:
                    return -errno.E2BIG
                model.inner[key] = self.maps[value.decode()]
                return 0
            case "point":
                return model.assign(int.from_bytes(key, "little"), value.decode())
            case "push":
                return model.push(value, flags)
            case "pop":
                return model.take(True)
        found = model.peek(key)
        return None if found is None else bytes(found)

    def missing(self, spec: MapSpec, key: bytes) -> int:
        """What deleting an inner map gives where there is none."""
        behind = spec.type == MapType.ARRAY_OF_MAPS and (
            int.from_bytes(key, "little") >= spec.max_entries)
        return -errno.E2BIG if behind else -errno.ENOENT

    def contents(self, spec: MapSpec) -> Any:
        model: Any = self.maps[spec.name]
        if spec.type == MapType.RINGBUF:
            return [bytes(record) for record in model.consume()]
        if spec.type in LISTS:
            return list(iter(lambda: model.take(True), None))
        return {bytes(key): bytes(value) for key, value in model.items()}


class _Outside:
    """Maps as user space sees them, ours and the kernel's; `cpu` is where programs run."""

    cpu = 0
    maps: Any

    def operate(self, step: Step) -> Any:
        name, operation, key, value, flags = step
        one = self.maps[name]
        try:
            match operation:
                case "update":
                    one.update(key, value, flags)
                    return 0
                case "delete":
                    one.delete(key)
                    return 0
                case "point":
                    self.point(one, key, value.decode())
                    return 0
                case "push":
                    self.push(one, value, flags)
                    return 0
                case "pop":
                    return self.pop(one)
            return self.of_cpu(one.spec, one.lookup(key))
        except OSError as error:
            return -(error.errno or 0)

    def point(self, one: Any, key: bytes, name: str) -> None:
        """Put a map or a program into a slot."""
        raise NotImplementedError

    def records(self, one: Any) -> list[bytes]:
        return [bytes(record) for record in one.consume()]

    def push(self, one: Any, value: bytes, flags: int) -> None:
        one.push(value, flags)

    def pop(self, one: Any) -> bytes | None:
        value: bytes | None = one.pop()
        return value

    def of_cpu(self, spec: MapSpec, value: Any) -> Any:
        return value[0] if isinstance(value, list) else value

    def contents(self, spec: MapSpec) -> Any:
        one = self.maps[spec.name]
        if spec.type == MapType.RINGBUF:
            return self.records(one)
        if spec.type in LISTS:
            return list(iter(lambda: self.pop(one), None))
        return {key: self.of_cpu(spec, value) for key, value in one.items()}


class Compiled(_Outside):
    def __init__(self, program: Program, opt: int) -> None:
        self.program, self.maps = program, program.raw_maps
        self.name = f"compiled {target.name(opt)}"

    def run(self, batch: Batch) -> tuple[Header, Slots]:
        return batch.compiled(self.program)

    def point(self, one: Any, key: bytes, name: str) -> None:
        if one.spec.type in OF_MAPS:
            one.set_inner(key, self.maps[name])
            return
        number = 1
        with suppress(KeyError):  # through an array that is not used any number will do
            number += self.program.program_number(name)
        one.update(key, number.to_bytes(4, "little"))


class Kernel(_Outside):
    name = "kernel"

    def __init__(self, program: KernelProgram, cpu: int) -> None:
        self.program, self.maps, self.cpu = program, program.maps, cpu

    def run(self, batch: Batch) -> tuple[Header, Slots]:
        return batch.kernel(self.program.fd)

    def point(self, one: Any, key: bytes, name: str) -> None:
        fd = self.maps[name].fd if one.spec.type in OF_MAPS else self.program.programs[name]
        one.update(key, fd.to_bytes(4, "little"))

    def records(self, one: Any) -> list[bytes]:
        return take_records(one.fd, one.spec.max_entries)

    def verified(self) -> int:
        """Instructions that the kernel's verifier walked through."""
        words = info(self.program.fd, _VERIFIED_INSNS + 4)
        return int.from_bytes(words[_VERIFIED_INSNS:], "little")

    def push(self, one: Any, value: bytes, flags: int) -> None:
        one.update(b"", value, flags)

    def pop(self, one: Any) -> bytes | None:
        value: bytes | None = one.lookup_and_delete()
        return value

    def of_cpu(self, spec: MapSpec, value: Any) -> Any:
        if value is None or spec.type not in PER_CPU:
            return value
        return value[self.cpu * spec.value_size : (self.cpu + 1) * spec.value_size]


@contextmanager
def in_kernel(obj: Object, cpu: int) -> Iterator[Kernel]:
    with load_into_kernel(obj) as program:
        yield Kernel(program, cpu)


@contextmanager
def compiled(obj: Object, opt: int) -> Iterator[Compiled]:
    with load(obj, opt=opt, units=(UNIT,)) as program:
        yield Compiled(program, opt)
