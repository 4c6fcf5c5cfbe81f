/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A balancer of layer 4, one packet from end to end.  Which parts it has, the .c that includes this
 * says; the path is inlined once for IPv4 and once for IPv6, as in those that carry traffic.
 */
#pragma once

#include "balancer_send.h"

static __always_inline struct vip *find_vip(struct packet *packet)
{
	struct vip_key key = {.port = packet->flow->dport, .protocol = packet->flow->protocol};
	struct vip *vip;

	copy_address(key.addr, packet->flow->dst);
	vip = bpf_map_lookup_elem(&vips, &key);
	if (vip)
		return vip;
	key.port = 0;
	vip = bpf_map_lookup_elem(&vips, &key);
	if (!vip)
		return NULL;
	count(PORT_ZERO);
	if (!(vip->flags & VIP_KEEP_PORT))
		packet->flow->dport = 0;
	return vip;
}

static __always_inline int balance(struct xdp_md *ctx, const int v6)
{
	struct flow flow = {};
	struct packet packet = {.flow = &flow};
	struct vip *vip;
	struct real *real;
	void *data, *end;
	__u32 index;
	int verdict = parse(&packet, ctx, v6);

	if (verdict != CONTINUE)
		return verdict;
	if (packet.protocol == IPPROTO_IPIP || packet.protocol == IPPROTO_IPV6)
		return leave_ipip(ctx, &packet, v6);
	data = DATA(ctx);
	end = DATA_END(ctx);
	verdict = parse_ports(&packet, data, end);
	if (verdict != CONTINUE)
		return verdict;
#ifdef WITH_GUE
	if (packet.protocol == IPPROTO_UDP && packet.flow->dport == bpf_htons(GUE_PORT)) {
		verdict = leave_gue(ctx, &packet, v6);
		if (verdict != CONTINUE)
			return verdict;
	}
#endif
	vip = find_vip(&packet);
	if (!vip)
		return XDP_PASS;
	if (end - data > MAX_FRAME)
		return v6 ? send_too_big_v6(ctx) : send_too_big_v4(ctx);
	if (vip->flags & VIP_NO_SRC_PORT)
		packet.flow->sport = 0;
#ifdef WITH_CLAMPED_MSS
	if (vip->flags & VIP_CLAMP_MSS && packet.state & IS_SYN)
		clamp_mss(&packet, data, end);
#endif
	index = pick(&packet, vip, data, end, v6);
	real = index ? bpf_map_lookup_elem(&reals, &index) : NULL;
	if (!real) {
		count(NO_REAL);
		return XDP_DROP;
	}
	count_in(&vip_counters, vip->number, packet.bytes);
	count_in(&real_counters, index, packet.bytes);
	if (real->flags & REAL_LOCAL) {
		count(LOCAL);
		return XDP_PASS;
	}
	return send(ctx, &packet, real, v6);
}

static __always_inline int conclude(struct xdp_md *ctx, int verdict)
{
	__u64 bytes = DATA_END(ctx) - DATA(ctx);

	if (verdict == XDP_TX)
		count_in(&counters, SENT, bytes);
	else if (verdict == XDP_DROP)
		count_in(&counters, DROPPED, bytes);
	else
		count_in(&counters, PASSED, bytes);
	return verdict;
}

SEC("xdp")
int balancer(struct xdp_md *ctx)
{
	struct ethhdr *eth = DATA(ctx);
	void *end = DATA_END(ctx);
	int verdict = XDP_PASS;

	if (!FITS(eth, end))
		return XDP_DROP;
	count_in(&counters, TOTAL, end - (void *)eth);
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		verdict = balance(ctx, 0);
	else if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		verdict = balance(ctx, 1);
	return conclude(ctx, verdict);
}

struct programs programs SEC(".maps") = {.values = {[0] = (void *)&balancer}};

char _license[] SEC("license") = "GPL";
