// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Packets by IP protocol, in an array shared by all CPUs, and one a CPU. */
#include "micro.h"

MAP(shared, BPF_MAP_TYPE_ARRAY, 256, u32, u64);
MAP(own, BPF_MAP_TYPE_PERCPU_ARRAY, 256, u32, u64);

INLINE int body_array_counter(u8 *data, u8 *end)
{
	u32 key;
	u64 *count;
	if (data + 34 > end)
		return ABORTED;
	key = data[23];
	count = LOOKUP(shared, &key);
	if (!count)
		return ABORTED;
	__sync_fetch_and_add(count, 1);
	return PASS;
}

INLINE int body_percpu_counter(u8 *data, u8 *end)
{
	u32 key;
	u64 *count;
	if (data + 34 > end)
		return ABORTED;
	key = data[23];
	count = LOOKUP(own, &key);
	if (!count)
		return ABORTED;
	(*count)++;
	return PASS;
}

PROGRAM(array_counter)
PROGRAM(percpu_counter)
