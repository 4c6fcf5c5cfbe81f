// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Packets and bytes by 5-tuple, in a table that is as large as there are flows (-DFLOWS=). */
#include "micro.h"

struct flow { u64 packets, bytes; };

MAP(table, BPF_MAP_TYPE_HASH, FLOWS, struct tuple, struct flow);

INLINE int body_flow_table(u8 *data, u8 *end)
{
	struct tuple key = {};
	struct flow *flow, fresh = {1, end - data};
	if (!tuple_of(data, end, &key))
		return ABORTED;
	flow = LOOKUP(table, &key);
	if (!flow)
		return bpf_map_update_elem(&table, &key, &fresh, BPF_ANY) ? ABORTED : PASS;
	flow->packets++;
	flow->bytes += end - data;
	return PASS;
}

PROGRAM(flow_table)
