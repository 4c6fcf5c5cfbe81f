// Text in packets: DNS names, the server name of TLS, HTTP methods; bounded loops over bytes.
#include "edge.h"
RESULTS(8)

struct name {
	char text[64];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct name);
	__type(value, __u64);
} queried SEC(".maps");

// Labels of a DNS name, in lower case, with dots; its length, or -1.
static __noinline int labels(__u8 *at, __u8 *end, struct name *name)
{
	__u32 left = 0, i;

	if (!name)
		return -1;
	for (i = 0; i < 63; i++) {
		__u8 c;

		if (at + i + 1 > end)
			return -1;
		c = at[i];
		if (left == 0) {
			if (c == 0)
				return i;
			if (c > 63)
				return -1;
			left = c;
			c = '.';
		} else {
			left--;
			if (c >= 'A' && c <= 'Z')
				c += 32;
		}
		name->text[i] = c;
	}
	return -1;
}

SEC("xdp") int dns(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx), *end = end_of(ctx);
	struct name name = {};
	__u64 one = 1, *count;
	int length;

	if (data + 54 > end)
		return XDP_PASS;
	length = labels(data + 40, end, &name);
	put(0, length);
	if (length <= 0)
		return XDP_DROP;
	count = bpf_map_lookup_elem(&queried, &name);
	if (count)
		__sync_fetch_and_add(count, length);
	else
		bpf_map_update_elem(&queried, &name, &one, BPF_NOEXIST);
	return XDP_TX;
}

SEC("xdp") int http(struct xdp_md *ctx)
{
	char line[16] = {};
	__u32 hash = 5381, spaces = 0;

	if (bpf_xdp_load_bytes(ctx, 14, line, 16))
		return XDP_PASS;
	for (int i = 0; i < 16; i++) {
		if (line[i] == ' ' && ++spaces == 2)
			break;
		hash = hash * 33 + line[i];
	}
	put(1, hash);
	put(2, spaces);
	if (!bpf_strncmp(line, 4, "GET "))
		return XDP_TX;
	put(3, bpf_strncmp(line, 16, "E"));
	return hash & 1 ? XDP_PASS : XDP_DROP;
}

char LICENSE[] SEC("license") = "GPL";
