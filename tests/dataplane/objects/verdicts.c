// SPDX-License-Identifier: Apache-2.0
// A packet says behind its Ethernet header what is to be done with it, by all ways there are.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

struct order {
	__u32 verdict, way, target; // target: interface, or entry of a map
	__u32 mark;                 // written by programs of entries
	__u32 then;                 // where a cpumap's program redirects to; 0: XDP_PASS
};
enum { INTERFACE, PORTS, HASHED, ALL, OTHERS, CPUS, SOCKETS };

#define MAP(name, kind, value_type)                    \
	struct {                                       \
		__uint(type, BPF_MAP_TYPE_##kind);     \
		__uint(max_entries, 16);               \
		__type(key, __u32);                    \
		__type(value, value_type);             \
	} name SEC(".maps")

MAP(ports, DEVMAP, struct bpf_devmap_val);
MAP(hashed, DEVMAP_HASH, struct bpf_devmap_val);
MAP(every, DEVMAP, struct bpf_devmap_val);
MAP(cpus, CPUMAP, struct bpf_cpumap_val);
MAP(xsks, XSKMAP, __u32);

static __always_inline struct order *order_of(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	return data + 14 + sizeof(struct order) > end ? 0 : data + 14;
}

SEC("xdp")
int verdicts(struct xdp_md *ctx)
{
	struct order *o = order_of(ctx);

	if (!o)
		return XDP_DROP; // not of the test
	if (o->verdict != XDP_REDIRECT)
		return o->verdict;
	switch (o->way) {
	case INTERFACE:
		return bpf_redirect(o->target, 0);
	case PORTS:
		return bpf_redirect_map(&ports, o->target, 0);
	case HASHED:
		return bpf_redirect_map(&hashed, o->target, 0);
	case ALL:
		return bpf_redirect_map(&every, 0, BPF_F_BROADCAST);
	case OTHERS:
		return bpf_redirect_map(&every, 0, BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS);
	case CPUS:
		return bpf_redirect_map(&cpus, o->target, 0);
	case SOCKETS:
		return bpf_redirect_map(&xsks, o->target, 0);
	}
	return XDP_ABORTED;
}

SEC("xdp/devmap")
int stamp(struct xdp_md *ctx)
{
	struct order *o = order_of(ctx);

	if (!o)
		return XDP_DROP;
	o->mark = ctx->egress_ifindex;
	return XDP_PASS;
}

SEC("xdp/cpumap")
int there(struct xdp_md *ctx)
{
	struct order *o = order_of(ctx);

	if (!o)
		return XDP_DROP;
	o->mark = ctx->ingress_ifindex;
	return o->then ? bpf_redirect(o->then, 0) : XDP_PASS;
}
