"""Looking ahead: what the programs of a batch will look up, fetched while nobody waits for it.

Before a batch's programs run, its scouts do (xdp_runtime/compiler/scout.py); then all of them go on
step by step (xdp_runtime/maps/scout.py), so that the batch waits for memory together and not one
packet after the other.

That costs some nanoseconds a packet, and is lost where what is looked up is in the cache anyway.
So a flow tries both ways from time to time, batch about, and goes on with the one that was faster
more often (AUTO).  Of 1024 batches, 32 are such a trial.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataplane import port
from xdp_runtime import state as st
from xdp_runtime.maps.scout import KIND, PLACE_BYTES, SCOUT, STEP, STEPS
from xdp_runtime.template import Template

Factory = Callable[..., Any]

# of a flow, F_SCOUT
TURN, WINS, PLAIN, CHOICE = 0, 4, 8, 12  # u32 each
SCOUT_BYTES = 16
AUTO, ALWAYS, NEVER = 0, 1, 2
WORDS = {"auto": AUTO, "on": ALWAYS, "off": NEVER}
_FEW = 8  # packets: in smaller batches nothing is gained
_PERIOD, _TRIAL = 1024, 32  # batches
_PLACES_BYTES = PLACE_BYTES * port.BATCH_MAX


def _look_ahead(m: Any) -> Factory:
    scout, steps_of = m.symbol(SCOUT, "i64(ptr, ptr)"), m.symbol(STEPS, "i64()")
    step = m.extern(STEP)
    state_bytes = st.STATE_SIZE_BYTES  # literals, as alloca needs them
    places_bytes = _PLACES_BYTES

    def look_ahead(how, flow, batch, count, ifindex, rx_queue, worker, memory):  # type: ignore
        """When a trial began, in cycles; 0 if this is none."""
        steps = steps_of()
        if steps == 0 or count < _FEW:
            return 0
        began = 0
        if how == AUTO:
            turn = m.load_u32(flow, TURN)
            m.store_u32(flow, TURN, turn + 1)
            turn &= _PERIOD - 1
            if turn < _TRIAL:
                began = m.cycles()
                how = ALWAYS if turn & 1 else NEVER
            else:
                how = m.load_u32(flow, CHOICE)
        if how != ALWAYS:
            return began
        run, places = m.alloca(state_bytes), m.alloca(places_bytes)
        for i in range(count):
            slot = m.gep(batch, i * port.SLOT_SIZE_BYTES)
            data = m.load_ptr(slot, port.DATA)
            m.store_ptr(run, st.DATA, data)
            m.store_ptr(run, st.DATA_END, m.load_ptr(slot, port.DATA_END))
            m.store_ptr(run, st.DATA_META, data)
            m.store_ptr(run, st.HARD_START, m.load_ptr(slot, port.HARD_START))
            m.store_ptr(run, st.FRAME_END, m.load_ptr(slot, port.FRAME_END))
            m.store_u32(run, st.INGRESS_IFINDEX, ifindex)
            m.store_u32(run, st.RX_QUEUE_INDEX, rx_queue)
            m.store_u32(run, st.EGRESS_IFINDEX, 0)
            m.store_u32(run, st.WORKER_ID, worker)
            m.store_u32(run, st.TAIL_CALLS, 0)
            m.store_ptr(run, st.WORKER, memory)
            m.store_u32(run, st.FRAGMENT_COUNT, 0)
            m.store_u32(run, st.FRAGMENT_BYTES, 0)
            place = m.gep(places, i * PLACE_BYTES)
            m.store_u32(place, KIND, 0)
            scout(run, place)
        for _ in range(steps):
            for i in range(count):
                step(m.gep(places, i * PLACE_BYTES))
        return began

    return look_ahead


def _judge(m: Any) -> Factory:
    def judge_trial(flow, count, began):  # type: ignore
        """A batch of a trial is done: its cycles a packet are held against the last one's."""
        took = ((m.cycles() - began) << 8) // count
        turn = (m.load_u32(flow, TURN) - 1) & (_PERIOD - 1)
        wins = m.load_u32(flow, WINS)
        if turn & 1 == 0:
            m.store_u32(flow, PLAIN, took)
            return 0
        if took < m.load_u32(flow, PLAIN):
            wins += 1
        if turn == _TRIAL - 1:
            m.store_u32(flow, CHOICE, ALWAYS if wins * 4 > _TRIAL else NEVER)
            wins = 0
        m.store_u32(flow, WINS, wins)
        return 0

    return judge_trial


LOOK_AHEAD = Template("look_ahead", _look_ahead, "i64(i64, ptr, ptr, i64, i64, i64, i64, ptr)",
                      (STEP,), inline=False)
JUDGE = Template("judge_trial", _judge, "i64(ptr, i64, i64)", inline=False)
