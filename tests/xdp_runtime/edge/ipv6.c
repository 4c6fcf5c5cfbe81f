// The chain of IPv6 extension headers, to the ports; fragments, AH and lengths in their own units.
#include "edge.h"
RESULTS(8)

struct opt {
	__u8 next, len;
};
struct ports {
	__be16 source, dest;
};

SEC("xdp") int walk(struct xdp_md *ctx)
{
	void *data = data_of(ctx), *end = end_of(ctx);
	struct ethhdr *eth = data;
	struct ipv6hdr *ip = data + 14;
	void *at = ip + 1;
	__u8 next;

	if (at > end || eth->h_proto != bpf_htons(ETH_P_IPV6))
		return XDP_PASS;
	next = ip->nexthdr;
#pragma unroll
	for (int i = 0; i < 8; i++) {
		struct opt *o = at;

		switch (next) {
		case 0:
		case 43:
		case 60:
		case 135:
			if ((void *)(o + 1) > end)
				return XDP_DROP;
			at += (o->len + 1) * 8;
			break;
		case 51:
			if ((void *)(o + 1) > end)
				return XDP_DROP;
			at += (o->len + 2) * 4;
			break;
		case 44:
			if (at + 8 > end)
				return XDP_DROP;
			if (*(__be16 *)(at + 2) & bpf_htons(0xfff8))
				return XDP_PASS; /* not the first */
			at += 8;
			break;
		case 6:
		case 17: {
			struct ports *p = at;

			if ((void *)(p + 1) > end)
				return XDP_DROP;
			put(next & 7, bpf_ntohs(p->dest));
			p->source = bpf_htons(1000 + i);
			return XDP_TX;
		}
		default:
			put(0, next);
			return XDP_PASS;
		}
		next = o->next;
	}
	return XDP_ABORTED;
}

// The same with a loop that is not unrolled, by load_bytes.
SEC("xdp") int walk_bytes(struct xdp_md *ctx)
{
	__u32 at = 54;
	__u8 next;
	__be16 proto;

	if (bpf_xdp_load_bytes(ctx, 12, &proto, 2) || proto != bpf_htons(ETH_P_IPV6) ||
	    bpf_xdp_load_bytes(ctx, 20, &next, 1))
		return XDP_PASS;
	for (int i = 0; i < 12; i++) {
		struct opt o;

		if (next == 6 || next == 17) {
			struct ports p;

			if (bpf_xdp_load_bytes(ctx, at, &p, sizeof(p)))
				return XDP_DROP;
			put(1, p.dest);
			p.dest = p.source;
			put(2, bpf_xdp_store_bytes(ctx, at, &p, sizeof(p)));
			return XDP_TX;
		}
		if (next != 0 && next != 43 && next != 44 && next != 60)
			return XDP_PASS;
		if (bpf_xdp_load_bytes(ctx, at, &o, 2))
			return XDP_DROP;
		at += next == 44 ? 8 : (o.len + 1) * 8;
		next = o.next;
	}
	return XDP_ABORTED;
}

char LICENSE[] SEC("license") = "GPL";
