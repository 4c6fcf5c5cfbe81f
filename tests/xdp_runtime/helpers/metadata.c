// SPDX-License-Identifier: Apache-2.0
// What the port knows of a packet, written into it.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *ctx, __u64 *timestamp) __ksym;
extern int bpf_xdp_metadata_rx_hash(const struct xdp_md *ctx, __u32 *hash, int *type) __ksym;
extern int bpf_xdp_metadata_rx_vlan_tag(const struct xdp_md *ctx, __u16 *proto, __u16 *tci) __ksym;

char _license[] SEC("license") = "GPL";

struct result {
	__s32 timestamp_error, hash_error, vlan_error;
	__u32 hash, type;
	__u16 proto, tci;
	__u64 timestamp;
};

SEC("xdp")
int metadata(struct xdp_md *ctx)
{
	struct result *r;
	__u64 timestamp = 0x1111;
	__u32 hash = 0x2222;
	int type = 0x3333;
	__u16 proto = 0x4444, tci = 0x5555;
	int first = bpf_xdp_metadata_rx_timestamp(ctx, &timestamp);
	int second = bpf_xdp_metadata_rx_hash(ctx, &hash, &type);
	int third = bpf_xdp_metadata_rx_vlan_tag(ctx, &proto, &tci);

	r = (void *)(long)ctx->data;
	if ((void *)(r + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	r->timestamp_error = first;
	r->hash_error = second;
	r->vlan_error = third;
	r->timestamp = timestamp;
	r->hash = hash;
	r->type = type;
	r->proto = proto;
	r->tci = tci;
	return XDP_PASS;
}
