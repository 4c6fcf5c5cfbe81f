// SPDX-License-Identifier: Apache-2.0
// A linked list in an arena: user space makes the nodes, the program walks, counts and reorders
// them.  The casts are written as bytes, for compilers that do not know them (clang < 19).
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

#ifndef BPF_MAP_TYPE_ARENA
#define BPF_MAP_TYPE_ARENA 33
#endif
#define TO_PROGRAM 1
#define TO_USER 0x10000

// r1 = addr_space_cast(r1): the operand is pinned to r1
#define CAST(pointer, how)                                                      \
	({                                                                      \
		register typeof(pointer) _one asm("r1") = (pointer);            \
		asm volatile(".byte 0xbf, 0x11, 0x01, 0x00\n.long " how : "+r"(_one)); \
		_one;                                                           \
	})
#define PROGRAM(pointer) CAST(pointer, "1")
#define USER(pointer) CAST(pointer, "0x10000")

struct {
	__uint(type, BPF_MAP_TYPE_ARENA);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 16);
} arena SEC(".maps");

struct node {
	struct node *next; // as user space sees it
	__u64 value;
};

struct head {
	struct node *first;
	__u64 seen, sum;
};

struct head list __attribute__((section(".addr_space.1"))) = { 0, 7, 0 };

SEC("xdp")
int walk(struct xdp_md *ctx)
{
	struct head *head = PROGRAM(&list);
	struct node *user = head->first, *last = 0;

	// the map must be named for the program to have an arena
	asm volatile("" : : "r"(&arena));
	head->sum = 0;
	for (int n = 0; n < 1000 && user; n++) {
		struct node *node = PROGRAM(user);

		head->sum += node->value;
		__sync_fetch_and_add(&head->seen, 1);
		node->value += 1;
		last = node;
		user = node->next;
	}
	if (last && last != PROGRAM(head->first)) { // the last comes first
		last->next = head->first;
		head->first = USER(last);
		return XDP_TX; // a ring, now
	}
	return XDP_PASS;
}
