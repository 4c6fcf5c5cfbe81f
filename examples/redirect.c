// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Sends what comes in on one interface out of another, unchanged.  No peer: to the stack. */
#include "packet.h"

/* Ingress interface index -> egress interface index. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} peer SEC(".maps");

SEC("xdp")
int redirect(struct xdp_md *ctx)
{
	__u32 ingress = ctx->ingress_ifindex;
	__u32 *egress = bpf_map_lookup_elem(&peer, &ingress);

	return egress ? bpf_redirect(*egress, 0) : XDP_PASS;
}

char _license[] SEC("license") = "GPL";
