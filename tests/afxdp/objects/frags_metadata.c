// SPDX-License-Identifier: Apache-2.0
// Datagrams of any size go back to their sender, with what the driver knows of them at the front of
// the payload.  Their checksum may be left to hardware: what is swapped leaves it as it is.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

extern int bpf_xdp_metadata_rx_hash(const struct xdp_md *ctx, __u32 *hash, int *type) __ksym;

char _license[] SEC("license") = "GPL";

struct told {
	__s32 error;
	__u32 hash;
};

SEC("xdp.frags")
int frags_metadata(struct xdp_md *ctx)
{
	__u32 hash = 0x2222;
	int type = 0;
	int error = bpf_xdp_metadata_rx_hash(ctx, &hash, &type);
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	struct udphdr *udp = (void *)(ip + 1);
	struct told *told = (void *)(udp + 1);
	__u8 mac[ETH_ALEN];
	__be32 address;
	__be16 port;

	if ((void *)(told + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) ||
	    ip->protocol != IPPROTO_UDP || udp->dest != bpf_htons(5000))
		return XDP_PASS;
	__builtin_memcpy(mac, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, mac, ETH_ALEN);
	address = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = address;
	port = udp->source;
	udp->source = udp->dest;
	udp->dest = port;
	told->error = error;
	told->hash = hash;
	return XDP_TX;
}
