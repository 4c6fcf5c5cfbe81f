// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Where an IPv4 packet goes, out of 100,000 routes. */
#include "micro.h"

struct prefix { u32 length; u8 address[4]; };

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, u32);
} routes SEC(".maps");
u64 sum;

INLINE int body_lpm_v4(u8 *data, u8 *end)
{
	struct prefix key = {.length = 32};
	u32 *hop;
	if (data + 34 > end)
		return ABORTED;
	*(u32 *)key.address = *(u32 *)(data + 30);
	hop = LOOKUP(routes, &key);
	if (!hop)
		return DROP;
	sum += *hop;
	return PASS;
}

PROGRAM(lpm_v4)
