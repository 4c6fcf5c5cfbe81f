"""The writers' lock of a map: a word in shared memory that names its owner.

It holds the process id of who has it, 0 if nobody has.  Who waits long asks whether that process is
alive; if not, it takes the lock over, and is told so: the map may be half changed.  Threads do not
die alone, so the process is enough.  All processes must be of one PID namespace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdp_runtime.template import Template

Factory = Callable[..., Any]

LOCK = 64  # u32, where it lies in a map's head

_SPINS = 200  # about 5 us of pauses before the lock's owner is taken to be preempted
_YIELDS = 256  # and so many turns of others before it is asked after
_PIDFD_OPEN = 434  # the system call's number, the same on all machines
_POLLIN = 1


def _gone(m: Any) -> Factory:
    def process_gone(pid):  # type: ignore
        """1 if there is no such process any more, or only its exit status."""
        fd = m.c_syscall(_PIDFD_OPEN, pid, 0)
        if fd < 0:
            if m.c_getpgid(pid) < 0:
                return 1
            return 0
        asked = m.gep(m.alloca(8), 0)
        m.store_u32(asked, 0, fd)
        m.store_u32(asked, 4, _POLLIN)
        ended = m.c_poll(asked, 1, 0)
        m.c_close(fd)
        if ended > 0:
            return 1
        return 0

    return process_gone


GONE = Template("process_gone", _gone, "i64(i64)", inline=False, rare=True)


def _wait(m: Any) -> Factory:
    gone = m.extern(GONE)

    def lock_wait(head, me):  # type: ignore
        spins = 0
        yields = 0
        while True:
            owner = m.relaxed_u32(head, LOCK)
            if owner == 0:
                if m.cas_u32(head, LOCK, 0, me):
                    return 0
            m.pause()
            spins += 1
            if spins >= _SPINS:
                spins = 0
                m.c_sched_yield()
                yields += 1
                if yields >= _YIELDS:
                    yields = 0
                    if owner != 0 and owner != me and gone(owner) != 0:
                        if m.cas_u32(head, LOCK, owner, me):
                            return 1

    return lock_wait


WAIT = Template("lock_wait", _wait, "i64(ptr, i64)", uses=(GONE,), inline=False, rare=True)


def _lock(m: Any) -> Factory:
    wait = m.extern(WAIT)

    def lock_take(head):  # type: ignore
        own = m.own_page()
        me = m.relaxed_u64(own, 0)
        if me == 0:
            me = m.c_getpid()
            m.store_u64(own, 0, me)
        if m.cas_u32(head, LOCK, 0, me):
            return 0
        return wait(head, me)

    return lock_take


# 1 if it was taken over from a process that died
LOCKED = Template("lock_take", _lock, "i64(ptr)", uses=(WAIT,))


def _unlock(m: Any) -> Factory:
    def lock_release(head):  # type: ignore
        m.release_u32(head, LOCK, 0)
        return 0

    return lock_release


UNLOCK = Template("lock_release", _unlock, "i64(ptr)")
