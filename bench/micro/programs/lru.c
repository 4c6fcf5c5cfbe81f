// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A table of connections that forgets: the same one again, and one after the other. */
#include "micro.h"

MAP(table, BPF_MAP_TYPE_LRU_HASH, 65536, struct tuple, u64);

INLINE int body_lru_hit(u8 *data, u8 *end)
{
	struct tuple key = {};
	u64 *value;
	if (!tuple_of(data, end, &key))
		return ABORTED;
	value = LOOKUP(table, &key);
	return value && *value == 7 ? DROP : PASS;
}

INLINE int body_lru_insert(u8 *data, u8 *end)
{
	struct tuple key = {};
	u64 value = 7;
	if (!tuple_of(data, end, &key))
		return ABORTED;
	return bpf_map_update_elem(&table, &key, &value, BPF_ANY) ? ABORTED : PASS;
}

PROGRAM(lru_hit)
PROGRAM(lru_insert)
