// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* One key of 20 bytes among 65,536: read, or given another value. */
#include "micro.h"

MAP(table, BPF_MAP_TYPE_HASH, 65536, struct tuple, u64);

INLINE int body_hash_hit(u8 *data, u8 *end)
{
	struct tuple key = {};
	u64 *value;
	if (!tuple_of(data, end, &key))
		return ABORTED;
	value = LOOKUP(table, &key);
	return value && *value == 7 ? DROP : PASS;
}

INLINE int body_hash_update(u8 *data, u8 *end)
{
	struct tuple key = {};
	u64 value = 7;
	if (!tuple_of(data, end, &key))
		return ABORTED;
	return bpf_map_update_elem(&table, &key, &value, BPF_ANY) ? ABORTED : DROP;
}

PROGRAM(hash_hit)
PROGRAM(hash_update)
