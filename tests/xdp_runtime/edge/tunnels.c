// Packed headers of tunnels, one within the other: VLANs, MPLS, GRE, VXLAN, Geneve; taken off and put on.
#include "edge.h"
RESULTS(8)

struct vlan {
	__be16 tci, proto;
} __attribute__((packed));

struct geneve {
	__u8 opt_len : 6, ver : 2;
	__u8 reserved : 6, critical : 1, oam : 1;
	__be16 proto;
	__u8 vni[3];
	__u8 reserved2;
} __attribute__((packed));

struct option {
	__be16 class;
	__u8 type;
	__u8 length : 5, r : 3;
} __attribute__((packed));

SEC("xdp") int geneve(struct xdp_md *ctx)
{
	void *data = data_of(ctx), *end = end_of(ctx), *at = data + 12, *options;
	struct geneve *g;
	__be16 proto;
	__u32 i, left;

	if (at + 2 > end)
		return XDP_DROP;
	proto = *(__be16 *)at;
	at += 2;
#pragma unroll
	for (i = 0; i < 3; i++) {
		struct vlan *v = at;

		if (proto != bpf_htons(ETH_P_8021Q) && proto != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(v + 1) > end)
			return XDP_DROP;
		put(0, bpf_ntohs(v->tci) & 0xfff);
		proto = v->proto;
		at += sizeof(*v);
	}
	g = at;
	if ((void *)(g + 1) > end)
		return XDP_PASS;
	put(1, g->opt_len << 8 | g->ver << 4 | g->critical << 1 | g->oam);
	put(2, g->vni[0] << 16 | g->vni[1] << 8 | g->vni[2]);
	g->oam ^= 1;
	g->opt_len += 1;
	left = g->opt_len * 4;
	options = g + 1;
	for (i = 0; i < 12; i++) {
		struct option *o = options;

		if (left < 4)
			break;
		if ((void *)(o + 1) > end)
			return XDP_DROP;
		put(3, o->type + o->length * 256 + bpf_ntohs(o->class));
		o->r = i;
		options += 4 + o->length * 4;
		left -= 4;
	}
	return XDP_TX;
}

// Takes the outer 20 to 60 bytes off, moves the Ethernet header up, puts a VLAN tag in between.
SEC("xdp") int retag(struct xdp_md *ctx)
{
	void *data = data_of(ctx), *end = end_of(ctx);
	struct ethhdr copy;
	struct iphdr *ip = data + 14;
	struct vlan *v;
	int off;

	if ((void *)(ip + 1) > end)
		return XDP_PASS;
	off = ip->ihl * 4;
	copy = *(struct ethhdr *)data;
	if (off < 20 || bpf_xdp_adjust_head(ctx, off - 4))
		return XDP_DROP;
	data = data_of(ctx);
	end = end_of(ctx);
	if (data + 18 > end)
		return XDP_ABORTED;
	*(struct ethhdr *)data = copy;
	v = data + 14;
	v->proto = ((struct ethhdr *)data)->h_proto;
	v->tci = bpf_htons(100 + off);
	((struct ethhdr *)data)->h_proto = bpf_htons(ETH_P_8021Q);
	return XDP_TX;
}

char LICENSE[] SEC("license") = "GPL";
