// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The packet's first 64 bytes to user space.  Nobody is woken: that would be a system call's cost. */
#include "micro.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} ring SEC(".maps");

SEC("xdp") int ring_output(struct xdp_md *ctx)
{
	u8 *data = (u8 *)(long)ctx->data, *end = (u8 *)(long)ctx->data_end;
	u64 sample[8]; /* a helper may not read the packet */
	if (data + 64 > end)
		return ABORTED;
	__builtin_memcpy(sample, data, 64);
	return bpf_ringbuf_output(&ring, sample, sizeof(sample), BPF_RB_NO_WAKEUP) ? ABORTED : PASS;
}
