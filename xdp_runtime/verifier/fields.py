"""Fields of map values that only helpers may touch, found by their types (btf_fields.py)."""

from __future__ import annotations

from xdp_runtime.btf_fields import SPIN_LOCK, TIMER, Field, special_fields

__all__ = ["SPIN_LOCK", "TIMER", "Field", "special_fields"]
