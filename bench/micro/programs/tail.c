// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* One tail call, by the IP protocol. */
#include "micro.h"

SEC("xdp") int target(struct xdp_md *ctx)
{
	return DROP;
}

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 256);
	__uint(key_size, 4);
	__array(values, int(struct xdp_md *));
} programs SEC(".maps") = {.values = {[17] = &target}};

SEC("xdp") int tail_call(struct xdp_md *ctx)
{
	u8 *data = (u8 *)(long)ctx->data, *end = (u8 *)(long)ctx->data_end;
	if (data + 34 > end)
		return ABORTED;
	bpf_tail_call(ctx, &programs, data[23]);
	return ABORTED;
}
