// What the programs here share: headers, bounds, a map for results.
#pragma once
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define data_of(ctx) ((void *)(long)(ctx)->data)
#define end_of(ctx) ((void *)(long)(ctx)->data_end)

#define RESULTS(entries)                            \
	struct {                                    \
		__uint(type, BPF_MAP_TYPE_ARRAY);   \
		__uint(max_entries, entries);       \
		__type(key, __u32);                 \
		__type(value, __u64);               \
	} results SEC(".maps");                     \
	static __always_inline void put(__u32 key, __u64 value)          \
	{                                                                \
		__u64 *found = bpf_map_lookup_elem(&results, &key);      \
		if (found)                                               \
			*found = *found * 31 + value;                    \
	}
