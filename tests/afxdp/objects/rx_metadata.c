// SPDX-License-Identifier: Apache-2.0
// What the driver knows of a packet, written into it behind the Ethernet header; and back it goes.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *ctx, __u64 *timestamp) __ksym;
extern int bpf_xdp_metadata_rx_hash(const struct xdp_md *ctx, __u32 *hash, int *type) __ksym;
extern int bpf_xdp_metadata_rx_vlan_tag(const struct xdp_md *ctx, __u16 *proto, __u16 *tci) __ksym;

char _license[] SEC("license") = "GPL";

struct told {
	__u8 ethernet[14];
	__u16 marker;
	__s32 errors[3];
	__u32 hash, type;
	__u16 proto, tci;
	__u64 timestamp;
} __attribute__((packed));

SEC("xdp")
int rx_metadata(struct xdp_md *ctx)
{
	struct told *told;
	__u64 timestamp = 0x1111;
	__u32 hash = 0x2222;
	int type = 0x3333;
	__u16 proto = 0x4444, tci = 0x5555;
	int first = bpf_xdp_metadata_rx_timestamp(ctx, &timestamp);
	int second = bpf_xdp_metadata_rx_hash(ctx, &hash, &type);
	int third = bpf_xdp_metadata_rx_vlan_tag(ctx, &proto, &tci);

	told = (void *)(long)ctx->data;
	if ((void *)(told + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	told->marker = 0x7878;
	told->errors[0] = first;
	told->errors[1] = second;
	told->errors[2] = third;
	told->timestamp = timestamp;
	told->hash = hash;
	told->type = type;
	told->proto = proto;
	told->tci = tci;
	return XDP_TX;
}
