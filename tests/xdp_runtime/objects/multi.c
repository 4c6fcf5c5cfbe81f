// Many sections, several programs in one section.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define PROGRAM(section, name, verdict) \
	SEC(section) int name(struct xdp_md *ctx) { return ctx->ingress_ifindex ? verdict : 0; }

PROGRAM("xdp", one, 1)
PROGRAM("xdp", two, 2)
PROGRAM("xdp.frags", frags, 2)
PROGRAM("xdp/devmap", dev, 2)
PROGRAM("xdp.frags/cpumap", cpu, 2)
PROGRAM("xdp_legacy", legacy_name, 3)
PROGRAM("xdp_devmap/egress", legacy_dev, 3)
PROGRAM("xdp/custom", custom, 4)
PROGRAM("xdp.frags/custom", frags_custom, 4)
PROGRAM("?xdp", optional, 2)

SEC("tc")
int classifier(struct __sk_buff *skb)
{
	return skb->len > 100;
}

char LICENSE[] SEC("license") = "BSD";
