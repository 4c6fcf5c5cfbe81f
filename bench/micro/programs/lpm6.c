// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Where an IPv6 packet goes, out of 100,000 routes. */
#include "micro.h"

struct prefix { u32 length; u8 address[16]; };

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, u32);
} routes SEC(".maps");
u64 sum;

INLINE int body_lpm_v6(u8 *data, u8 *end)
{
	struct prefix key = {.length = 128};
	u32 *hop;
	if (data + 54 > end)
		return ABORTED;
	for (int i = 0; i < 4; i++)
		((u32 *)key.address)[i] = ((u32 *)(data + 38))[i];
	hop = LOOKUP(routes, &key);
	if (!hop)
		return DROP;
	sum += *hop;
	return PASS;
}

PROGRAM(lpm_v6)
