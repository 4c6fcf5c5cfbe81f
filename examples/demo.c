// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A small host's edge: blocked ports are dropped, ping is answered here, the rest goes to the
 * ingress interface's peer if it has one, else to the stack.
 */
#include "echo.h"
#include "ports.h"

/* Ingress interface index -> egress interface index. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} peer SEC(".maps");

/* Packets by verdict. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, XDP_REDIRECT + 1);
	__type(key, __u32);
	__type(value, __u64);
} verdicts SEC(".maps");

static __always_inline int judge(struct xdp_md *ctx)
{
	void *data = DATA(ctx), *end = DATA_END(ctx);
	__u32 ingress = ctx->ingress_ifindex;
	__u32 *egress;

	if (is_blocked(data, end))
		return XDP_DROP;
	if (answer_echo(data, end))
		return XDP_TX;
	egress = bpf_map_lookup_elem(&peer, &ingress);
	return egress ? bpf_redirect(*egress, 0) : XDP_PASS;
}

SEC("xdp")
int demo(struct xdp_md *ctx)
{
	__u32 verdict = judge(ctx);
	__u64 *packets = bpf_map_lookup_elem(&verdicts, &verdict);

	if (packets)
		++*packets;
	return verdict;
}

char _license[] SEC("license") = "GPL";
