"""What a template may say beyond Python: memory, atomics, wrapping arithmetic.

A template is a Python function compiled by Numba; it knows 64-bit signed integers and pointers
(`ptr`, an opaque LLVM pointer), nothing else.  Numba adds and multiplies with `nsw`, so
arithmetic that may overflow says so: `add`, `mul`, `lshr`, `ult`.  Loads zero-extend to 64 bits.
Pointers stay pointers (`gep`, never inttoptr), which keeps LLVM's alias analysis alive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

I1, I8, I16, I32, I64, I128 = (ir.IntType(n) for n in (1, 8, 16, 32, 64, 128))
PTR = ir.PointerType()
ptr = types.voidptr
i64 = types.int64


def _gep(builder: Any, base: Any, offset: Any) -> Any:
    where = builder.gep(base, [offset], source_etype=I8)
    where.type = PTR  # Numba's own variables are typed i8*, through which llvmlite stores only i8
    return where


def _loader(bits: int, ordering: str | None = None, signed: bool = False) -> Any:
    @intrinsic
    def load(typingctx: Any, base: Any, offset: Any) -> Any:
        def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            address = _gep(builder, args[0], args[1])
            kind = ir.IntType(bits)
            if ordering:
                value = builder.load_atomic(address, ordering, bits // 8, typ=kind)
            else:
                value = builder.load(address, typ=kind, align=1)
            if bits == 64:
                return value
            return builder.sext(value, I64) if signed else builder.zext(value, I64)

        return i64(ptr, i64), codegen

    return load


def _storer(bits: int, ordering: str | None = None) -> Any:
    @intrinsic
    def store(typingctx: Any, base: Any, offset: Any, value: Any) -> Any:
        def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            address = _gep(builder, args[0], args[1])
            narrow = args[2] if bits == 64 else builder.trunc(args[2], ir.IntType(bits))
            if ordering:
                # not builder.store_atomic: it asks for the pointee, which a `ptr` has not
                builder._insert(ir.instructions.StoreAtomicInstr(
                    builder.block, narrow, address, ordering, bits // 8))
            else:
                builder.store(narrow, address, align=1)
            return ir.Constant(I64, 0)

        return i64(ptr, i64, i64), codegen

    return store


load_u8, load_u16, load_u32, load_u64 = (_loader(n) for n in (8, 16, 32, 64))
load_i32 = _loader(32, signed=True)
store_u8, store_u16, store_u32, store_u64 = (_storer(n) for n in (8, 16, 32, 64))
acquire_u32, acquire_u64 = _loader(32, "acquire"), _loader(64, "acquire")
relaxed_u32, relaxed_u64 = _loader(32, "monotonic"), _loader(64, "monotonic")
release_u32, release_u64 = _storer(32, "release"), _storer(64, "release")
relaxed_store_u32 = _storer(32, "monotonic")


@intrinsic
def load_ptr(typingctx: Any, base: Any, offset: Any) -> Any:
    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.load(_gep(builder, args[0], args[1]), typ=PTR, align=8)

    return ptr(ptr, i64), codegen


@intrinsic
def store_ptr(typingctx: Any, base: Any, offset: Any, value: Any) -> Any:
    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        builder.store(args[2], _gep(builder, args[0], args[1]), align=8)
        return ir.Constant(I64, 0)

    return i64(ptr, i64, ptr), codegen


@intrinsic
def gep(typingctx: Any, base: Any, offset: Any) -> Any:
    """base + offset, as a pointer into the same object"""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return _gep(builder, args[0], args[1])

    return ptr(ptr, i64), codegen


@intrinsic
def inside(typingctx: Any, base: Any, offset: Any) -> Any:
    """base + offset where the result is known to lie inside base's object, so not null"""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]], inbounds=True, source_etype=I8)

    return ptr(ptr, i64), codegen


@intrinsic
def diff(typingctx: Any, a: Any, b: Any) -> Any:
    """a - b in bytes"""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.sub(builder.ptrtoint(args[0], I64), builder.ptrtoint(args[1], I64))

    return i64(ptr, ptr), codegen


@intrinsic
def below(typingctx: Any, a: Any, b: Any) -> Any:
    """address of a < address of b"""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.icmp_unsigned("<", args[0], args[1])

    return types.boolean(ptr, ptr), codegen


@intrinsic
def is_null(typingctx: Any, a: Any) -> Any:
    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.icmp_unsigned("==", args[0], ir.Constant(PTR, None))

    return types.boolean(ptr), codegen


@intrinsic
def null(typingctx: Any) -> Any:
    def codegen(_context: Any, _builder: Any, _sig: Any, _args: Any) -> Any:
        return ir.Constant(PTR, None)

    return ptr(), codegen


@intrinsic
def address(typingctx: Any, a: Any) -> Any:
    """A pointer as a number, to hand to a system call or to store for the kernel."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], I64)

    return i64(ptr), codegen


@intrinsic
def alloca(typingctx: Any, size_bytes: Any) -> Any:
    """Uninitialised stack memory of a literal size, in the function's entry block."""
    if not isinstance(size_bytes, types.IntegerLiteral):
        return None
    count = size_bytes.literal_value

    def codegen(_context: Any, builder: Any, _sig: Any, _args: Any) -> Any:
        with builder.goto_entry_block():
            slot = builder.alloca(ir.ArrayType(I8, count))
            slot.align = 16
        return _gep(builder, slot, ir.Constant(I64, 0))

    return ptr(size_bytes), codegen


@intrinsic
def own_memory(typingctx: Any, size_bytes: Any) -> Any:
    """Zeroed memory of the loaded code: all its workers see it, and this template alone."""
    if not isinstance(size_bytes, types.IntegerLiteral):
        return None
    kind = ir.ArrayType(I8, size_bytes.literal_value)

    def codegen(_context: Any, builder: Any, _sig: Any, _args: Any) -> Any:
        module = builder.module
        name = f"own.{module.name}"
        memory = module.globals.get(name)
        if memory is None:
            memory = ir.GlobalVariable(module, kind, name)
            memory.linkage, memory.align = "internal", 64
            memory.initializer = ir.Constant(kind, None)
        return _gep(builder, memory, ir.Constant(I64, 0))

    return ptr(size_bytes), codegen


def _binary(emit: Callable[[Any, Any, Any], Any], boolean: bool = False) -> Any:
    result = types.boolean if boolean else i64

    @intrinsic
    def op(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            return emit(builder, args[0], args[1])

        return result(i64, i64), codegen

    return op


def _mulhi(builder: Any, a: Any, b: Any) -> Any:
    wide = builder.mul(builder.zext(a, I128), builder.zext(b, I128))
    high = builder.trunc(builder.lshr(wide, ir.Constant(I128, 64)), I64)
    return builder.xor(high, builder.trunc(wide, I64))


add = _binary(lambda b, x, y: b.add(x, y))  # wraps
sub = _binary(lambda b, x, y: b.sub(x, y))  # wraps
mul = _binary(lambda b, x, y: b.mul(x, y))  # wraps
lshr = _binary(lambda b, x, y: b.lshr(x, y))
ult = _binary(lambda b, x, y: b.icmp_unsigned("<", x, y), boolean=True)
ule = _binary(lambda b, x, y: b.icmp_unsigned("<=", x, y), boolean=True)
udiv = _binary(lambda b, x, y: b.udiv(x, y))  # the divisor must not be 0
urem = _binary(lambda b, x, y: b.urem(x, y))  # the divisor must not be 0
# the smaller of two signed numbers; Python's min() would be a call into Numba's own library
smaller = _binary(lambda b, x, y: b.select(b.icmp_signed("<", x, y), x, y))
mum = _binary(_mulhi)  # low and high half of the 128-bit product, xored


def _call_external(name: str, result: Any, params: tuple[Any, ...]) -> Any:
    return types.ExternalFunction(name, result(*params))


@intrinsic
def copy(typingctx: Any, dst: Any, src: Any, count: Any) -> Any:
    """memcpy of `count` bytes; the ranges must not overlap"""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        fn = builder.module.declare_intrinsic("llvm.memcpy", [PTR, PTR, I64])
        builder.call(fn, [*args, ir.Constant(I1, 0)])
        return ir.Constant(I64, 0)

    return i64(ptr, ptr, i64), codegen


@intrinsic
def note_difference(typingctx: Any, seen: Any, base: Any, offset: Any, low: Any, high: Any) -> Any:
    """seen |= 16 bytes at base + offset ^ (low, high); `seen` of an alloca is a vector register."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        pair, wanted = ir.VectorType(I64, 2), ir.Constant(ir.VectorType(I64, 2), ir.Undefined)
        for place, half in enumerate(args[3:]):
            wanted = builder.insert_element(wanted, half, ir.Constant(I32, place))
        found = builder.load(_gep(builder, args[1], args[2]), typ=pair, align=1)
        into = _gep(builder, args[0], ir.Constant(I64, 0))
        known = builder.load(into, typ=pair, align=1)
        builder.store(builder.or_(known, builder.xor(found, wanted)), into, align=1)
        return ir.Constant(I64, 0)

    return i64(ptr, ptr, i64, i64, i64), codegen


@intrinsic
def move(typingctx: Any, dst: Any, src: Any, count: Any) -> Any:
    """memmove of `count` bytes"""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        fn = builder.module.declare_intrinsic("llvm.memmove", [PTR, PTR, I64])
        builder.call(fn, [*args, ir.Constant(I1, 0)])
        return ir.Constant(I64, 0)

    return i64(ptr, ptr, i64), codegen


@intrinsic
def zero(typingctx: Any, dst: Any, count: Any) -> Any:
    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        fn = builder.module.declare_intrinsic("llvm.memset", [PTR, I64])
        builder.call(fn, [args[0], ir.Constant(I8, 0), args[1], ir.Constant(I1, 0)])
        return ir.Constant(I64, 0)

    return i64(ptr, i64), codegen


@intrinsic
def equal(typingctx: Any, a: Any, b: Any, count: Any) -> Any:
    """a[:count] == b[:count]; a constant count becomes a few wide compares"""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(I32, [PTR, PTR, I64])
        fn = builder.module.globals.get("bcmp") or ir.Function(builder.module, kind, "bcmp")
        return builder.icmp_signed("==", builder.call(fn, args), ir.Constant(I32, 0))

    return types.boolean(ptr, ptr, i64), codegen


@intrinsic
def prefetch(typingctx: Any, base: Any, offset: Any) -> Any:
    """Ask for a cache line to be read soon."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [PTR, I32, I32, I32])
        name = "llvm.prefetch.p0"
        fn = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        where = _gep(builder, args[0], args[1])
        builder.call(fn, [where, ir.Constant(I32, 0), ir.Constant(I32, 3), ir.Constant(I32, 1)])
        return ir.Constant(I64, 0)

    return i64(ptr, i64), codegen


@intrinsic
def unlikely(typingctx: Any, condition: Any) -> Any:
    """The condition, which LLVM lays code out for not to hold."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        name = "llvm.expect.i1"
        fn = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(I1, [I1, I1]), name)
        return builder.call(fn, [args[0], ir.Constant(I1, 0)])

    return types.boolean(types.boolean), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """A spin-wait hint to the core."""

    def codegen(_context: Any, builder: Any, _sig: Any, _args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        name = "xdpu.pause"  # link.py defines it for the target
        fn = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        builder.call(fn, [])
        return ir.Constant(I64, 0)

    return i64(), codegen


@intrinsic
def fence(typingctx: Any) -> Any:
    """What was stored is seen by all before anything is loaded from here on."""

    def codegen(_context: Any, builder: Any, _sig: Any, _args: Any) -> Any:
        builder.fence("seq_cst")
        return ir.Constant(I64, 0)

    return i64(), codegen


@intrinsic
def own_page(typingctx: Any) -> Any:
    """8 bytes of memory that belong to this process and this code alone, zero at first."""

    def codegen(_context: Any, builder: Any, _sig: Any, _args: Any) -> Any:
        name = "xdpu.own"  # target.py defines it beside xdpu.pause
        cell = builder.module.globals.get(name)
        if cell is None:
            cell = ir.GlobalVariable(builder.module, I64, name)
        return _gep(builder, cell, ir.Constant(I64, 0))

    return ptr(), codegen


def _atomic(op: str, bits: int, ordering: str) -> Any:
    @intrinsic
    def rmw(typingctx: Any, base: Any, offset: Any, value: Any) -> Any:
        def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            narrow = args[2] if bits == 64 else builder.trunc(args[2], ir.IntType(bits))
            old = builder.atomic_rmw(op, _gep(builder, args[0], args[1]), narrow, ordering)
            return old if bits == 64 else builder.zext(old, I64)

        return i64(ptr, i64, i64), codegen

    return rmw


atomic_add_u32 = _atomic("add", 32, "acq_rel")
atomic_add_u64 = _atomic("add", 64, "acq_rel")
atomic_or_u64 = _atomic("or", 64, "acq_rel")
atomic_swap_u32 = _atomic("xchg", 32, "acq_rel")


@intrinsic
def cas_u32(typingctx: Any, base: Any, offset: Any, expected: Any, value: Any) -> Any:
    """Compare and swap; True when `value` was stored."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        where = _gep(builder, args[0], args[1])
        old, new = builder.trunc(args[2], I32), builder.trunc(args[3], I32)
        pair = builder.cmpxchg(where, old, new, "acq_rel", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(ptr, i64, i64, i64), codegen


@intrinsic
def cas_u64(typingctx: Any, base: Any, offset: Any, expected: Any, value: Any) -> Any:
    """Compare and swap; True when `value` was stored."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        where = _gep(builder, args[0], args[1])
        pair = builder.cmpxchg(where, args[2], args[3], "acq_rel", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(ptr, i64, i64, i64), codegen


@intrinsic
def swap16(typingctx: Any, value: Any) -> Any:
    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.zext(builder.bswap(builder.trunc(args[0], I16)), I64)

    return i64(i64), codegen


@intrinsic
def swap32(typingctx: Any, value: Any) -> Any:
    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.zext(builder.bswap(builder.trunc(args[0], I32)), I64)

    return i64(i64), codegen


@intrinsic
def swap64(typingctx: Any, value: Any) -> Any:
    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.bswap(args[0])

    return i64(i64), codegen


@intrinsic
def leading_zeros(typingctx: Any, value: Any) -> Any:
    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(I1, 0))

    return i64(i64), codegen


@intrinsic
def trailing_zeros(typingctx: Any, value: Any) -> Any:
    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(I1, 0))

    return i64(i64), codegen


@intrinsic
def cycles(typingctx: Any) -> Any:
    """The core's time stamp counter."""

    def codegen(_context: Any, builder: Any, _sig: Any, _args: Any) -> Any:
        kind = ir.FunctionType(I64, [])
        name = "llvm.readcyclecounter"
        fn = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(fn, [])

    return i64(), codegen


@intrinsic
def errno(typingctx: Any) -> Any:
    """errno of this thread, after a libc call that failed"""

    def codegen(_context: Any, builder: Any, _sig: Any, _args: Any) -> Any:
        kind = ir.FunctionType(PTR, [])
        name = "__errno_location"
        fn = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.zext(builder.load(builder.call(fn, []), typ=I32), I64)

    return i64(), codegen


class _Burst(ir.GEPInstr):  # type: ignore[misc]  # it brings no types
    """A pointer that knows the type of its function."""

    function_type = ir.FunctionType(I16, [PTR, PTR, I16])


@intrinsic
def call_burst(typingctx: Any, function: Any, a: Any, b: Any, count: Any) -> Any:
    """Call `uint16_t function(void *a, void **b, uint16_t count)` by its address."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        where = builder.gep(args[0], [ir.Constant(I64, 0)], source_etype=I8)
        where.__class__ = _Burst  # llvmlite asks the pointer what it points to, which it cannot say
        done = builder.call(where, [args[1], args[2], builder.trunc(args[3], I16)],
                            arg_attrs={2: ("zeroext",)})
        return builder.zext(done, I64)

    return i64(ptr, ptr, ptr, i64), codegen


class _Tap(ir.GEPInstr):  # type: ignore[misc]  # as above
    function_type = ir.FunctionType(I64, [PTR, PTR, PTR, I64])


@intrinsic
def call_tap(typingctx: Any, function: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Call `int64_t function(void *a, void *b, void *c, int64_t d)` by its address."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        where = builder.gep(args[0], [ir.Constant(I64, 0)], source_etype=I8)
        where.__class__ = _Tap
        return builder.call(where, list(args[1:]))

    return i64(ptr, ptr, ptr, ptr, i64), codegen


# libc, resolved in the running process
i32 = types.int32
c_write = _call_external("write", i64, (i32, ptr, i64))
c_writev = _call_external("writev", i64, (i32, ptr, i32))
c_read = _call_external("read", i64, (i32, ptr, i64))
c_poll = _call_external("poll", i32, (ptr, i64, i32))
c_ppoll = _call_external("ppoll", i32, (ptr, i64, ptr, ptr))
c_sendto = _call_external("sendto", i64, (i32, ptr, i64, i32, ptr, i32))
c_sendmmsg = _call_external("sendmmsg", i32, (i32, ptr, i32, i32))
c_clock_getres = _call_external("clock_getres", i32, (i32, ptr))
c_clock_gettime = _call_external("clock_gettime", i32, (i32, ptr))
c_times = _call_external("times", i64, (ptr,))
c_getcpu = _call_external("getcpu", i32, (ptr, ptr))
c_getrandom = _call_external("getrandom", i64, (ptr, i64, i32))
c_sched_yield = _call_external("sched_yield", i32, ())
c_getpid = _call_external("getpid", i32, ())
c_getpgid = _call_external("getpgid", i32, (i32,))
c_close = _call_external("close", i32, (i32,))
c_syscall = _call_external("syscall", i64, (i64, i64, i64))
c_syscall4 = _call_external("syscall", i64, (i64, i64, i64, i64))  # not both in one template
c_malloc = _call_external("malloc", ptr, (i64,))
c_calloc = _call_external("calloc", ptr, (i64, i64))
c_realloc = _call_external("realloc", ptr, (ptr, i64))
c_free = _call_external("free", i64, (ptr,))  # what it returns is not read
c_process_vm_readv = _call_external("process_vm_readv", i64, (i32, ptr, i64, ptr, i64, i64))

def external(name: str) -> Any:
    """A function that gives the address of memory outside the module, which gets its place when the
    code is loaded; for use in a factory.  The template says so in `externals`."""

    @intrinsic
    def memory(typingctx: Any) -> Any:
        def codegen(_context: Any, builder: Any, _sig: Any, _args: Any) -> Any:
            found = builder.module.globals.get(name)
            if found is None:
                found = ir.GlobalVariable(builder.module, I8, name)
            return _gep(builder, found, ir.Constant(I64, 0))

        return ptr(), codegen

    return memory


_TYPES = {"i64": i64, "ptr": ptr, "i32": i32}


def extern(template: Any) -> Any:
    """A function that calls another template; for use in a factory, before the inner `def`."""
    return types.ExternalFunction(
        template.name,
        _TYPES[template.result](*(_TYPES[p] for p in template.parameters)),
    )


def symbol(name: str, signature: str) -> Any:
    """A function of the linked module by name, such as the program itself."""
    result, params = signature.rstrip(")").split("(")
    names = [p.strip() for p in params.split(",") if p.strip()]
    return types.ExternalFunction(name, _TYPES[result.strip()](*(_TYPES[p] for p in names)))
