// SPDX-License-Identifier: Apache-2.0
// A map of each family, with values of every kind that BTF knows, for `map dump` and bpftool.
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

enum colour { RED = 1, GREEN = 5, NONE = -1 };

struct inner {
	__u16 port;
	char name[6];
};

typedef char letter;

struct value {
	__s8 s8;
	__u8 u8;
	__s16 s16;
	__u16 u16;
	__s32 s32;
	__u32 u32;
	__s64 s64;
	__u64 u64;
	bool yes;
	enum colour colour, other;
	char text[8], full[4];
	letter letters[4];
	__u8 mac[6];
	__u32 low : 3, high : 13;
	__s32 negative : 5;
	struct inner inner[2];
	union {
		__u32 word;
		__u8 bytes[4];
	};
	struct {
		__u16 a, b;
	};
	union {
		__u64 wide;
		struct inner one;
	} named;
	const volatile int *pointer;
	unsigned __int128 huge;
	__u32 grid[2][3];
};

struct pair {
	__u32 port;
	__u16 proto;
	__u16 zone;
};

#define MAP(name, kind, K, V, entries)                                          \
	struct {                                                                \
		__uint(type, BPF_MAP_TYPE_##kind);                              \
		__type(key, K);                                                 \
		__type(value, V);                                               \
		__uint(max_entries, entries);                                   \
	} name SEC(".maps")

#define SIZED(name, kind, key, value, entries)                                  \
	struct {                                                                \
		__uint(type, BPF_MAP_TYPE_##kind);                              \
		__uint(key_size, key);                                          \
		__uint(value_size, value);                                      \
		__uint(max_entries, entries);                                   \
	} name SEC(".maps")

MAP(a_array, ARRAY, __u32, struct value, 2);
MAP(a_hash, HASH, struct pair, struct value, 8);
MAP(a_lru, LRU_HASH, __u32, enum colour, 8);
MAP(p_array, PERCPU_ARRAY, __u32, __u32, 2);
MAP(p_hash, PERCPU_HASH, struct pair, struct inner, 8);
MAP(p_lru, LRU_PERCPU_HASH, __u32, __u64, 8);
SIZED(n_hash, HASH, 4, 8, 8);
SIZED(n_percpu, PERCPU_HASH, 4, 3, 8);
SIZED(n_16, HASH, 16, 16, 8);
SIZED(n_17, PERCPU_HASH, 17, 17, 8);
MAP(progs, PROG_ARRAY, __u32, __u32, 4);
MAP(devs, DEVMAP, __u32, __u32, 4);
MAP(dev_hash, DEVMAP_HASH, __u32, __u32, 4);
MAP(cpus, CPUMAP, __u32, __u32, 4);
MAP(socks, XSKMAP, __u32, __u32, 4);
MAP(events, PERF_EVENT_ARRAY, __u32, __u32, 4);
SIZED(stacks, STACK_TRACE, 4, 80, 4);

struct prefix {
	__u32 length;
	__u8 address[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct prefix);
	__type(value, struct inner);
	__uint(max_entries, 8);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} trie SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__type(value, struct inner);
	__uint(max_entries, 3);
} queue SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__type(value, __u32);
	__uint(max_entries, 3);
} stack SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_BLOOM_FILTER);
	__type(value, __u32);
	__uint(max_entries, 30);
} bloom SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_USER_RINGBUF);
	__uint(max_entries, 4096);
} user_ring SEC(".maps");

struct in_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 4);
} in_one SEC(".maps"), in_two SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(key_size, 4);
	__uint(max_entries, 3);
	__array(values, struct in_map);
} outer SEC(".maps") = { .values = { [0] = &in_one, [2] = &in_two } };

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(key_size, 4);
	__uint(max_entries, 3);
	__array(values, struct in_map);
} outer_hash SEC(".maps") = { .values = { [1] = &in_two } };

__u64 counted[2] = { 3, 4 };
static volatile __u32 hidden = 9;
char label[8] = "start";
__u32 zeroed;
const volatile struct inner fixed = { 53, "dns" };

SEC("xdp")
int dumped(struct xdp_md *ctx)
{
	hidden++;
	zeroed += fixed.port;
	return counted[0] ? XDP_PASS : XDP_DROP;
}
