// Internet checksums: by csum_diff, by hand, updated for a changed address; encapsulation and NAT.
#include "edge.h"
RESULTS(16)

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

SEC("xdp") int nat(struct xdp_md *ctx)
{
	void *data = data_of(ctx), *end = end_of(ctx);
	struct iphdr *ip = data + 14;
	__be32 from, to;
	__u16 *check = 0;

	if ((void *)(ip + 1) > end || *(__be16 *)(data + 12) != bpf_htons(ETH_P_IP) || ip->ihl != 5)
		return XDP_PASS;
	from = ip->daddr;
	to = bpf_htonl(0xc0a80101) ^ (ip->saddr & bpf_htonl(0xff));
	ip->daddr = to;
	if (ip->protocol == IPPROTO_TCP && (void *)(ip + 1) + 20 <= end)
		check = &((struct tcphdr *)(ip + 1))->check;
	else if (ip->protocol == IPPROTO_UDP && (void *)(ip + 1) + 8 <= end)
		check = &((struct udphdr *)(ip + 1))->check;
	ip->check = fold(bpf_csum_diff(&from, 4, &to, 4, (__u16)~ip->check));
	if (check) {
		*check = fold(bpf_csum_diff(&from, 4, &to, 4, (__u16)~*check));
		if (!*check)
			*check = 0xffff;
	}
	put(0, ip->check);
	return XDP_TX;
}

SEC("xdp") int encapsulate(struct xdp_md *ctx)
{
	void *data, *end;
	struct iphdr *ip;
	__u16 *words, len = ctx->data_end - ctx->data;
	__u32 sum = 0, i;

	if (bpf_xdp_adjust_head(ctx, -20))
		return XDP_DROP;
	data = data_of(ctx);
	end = end_of(ctx);
	if (data + 54 > end)
		return XDP_ABORTED;
	__builtin_memmove(data, data + 20, 14);
	ip = data + 14;
	*ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_IPIP,
			     .tot_len = bpf_htons(len + 6), .saddr = bpf_htonl(0x0a000001),
			     .daddr = ip[1].daddr};
	words = (__u16 *)ip;
#pragma unroll
	for (i = 0; i < 10; i++)
		sum += words[i];
	ip->check = ~((sum & 0xffff) + (sum >> 16));
	return XDP_TX;
}

// 64 bytes at a time, then words, then a byte: the whole payload.
SEC("xdp") int payload(struct xdp_md *ctx)
{
	__u8 *at = data_of(ctx), *end = end_of(ctx);
	__u64 sum = 0;
	__u32 i;

	at += 14;
	for (i = 0; i < 24; i++, at += 64) {
		if (at + 64 > end)
			break;
		sum = bpf_csum_diff(0, 0, (__be32 *)at, 64, sum);
	}
	for (i = 0; i < 32; i++, at += 2) {
		if (at + 2 > end)
			break;
		sum += *(__u16 *)at;
	}
	if (at + 1 <= end)
		sum += *at;
	put(1, fold(sum));
	return fold(sum) & 1 ? XDP_TX : XDP_PASS;
}

// Every size csum_diff takes, and those it refuses (not a multiple of four, over its scratch pad).
SEC("xdp") int sizes(struct xdp_md *ctx)
{
	__u32 from[100], size, other;
	__u8 *data = data_of(ctx);

	if (data + 64 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	for (int i = 0; i < 100; i++)
		from[i] = ((__u32 *)data)[i & 15] + i;
	size = data[0] << 8 | data[1];
	other = data[2] << 8 | data[3];
	if (size > 400)
		size &= 255;
	if (other > 400)
		other &= 255;
	put(2, bpf_csum_diff((__be32 *)from, size, (__be32 *)from, other, *(__u32 *)(data + 4)));
	put(3, bpf_csum_diff((__be32 *)from, size, 0, 0, 0));
	put(4, bpf_csum_diff(0, 0, (__be32 *)from, other, ~0u));
	put(5, bpf_csum_diff((__be32 *)from, size & ~3, (__be32 *)from, other & ~3, data[7]));
	put(6, bpf_csum_diff((__be32 *)from, 400, 0, 0, data[8]));
	put(7, bpf_csum_diff((__be32 *)from, 400, (__be32 *)from, 400, data[9]));
	put(8, bpf_csum_diff(0, 0, 0, 0, *(__u32 *)(data + 12)));
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
