// SPDX-License-Identifier: Apache-2.0
// The kernel's functions on text: which one, and what with, is in the packet.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int bpf_strcmp(const char *s1, const char *s2) __ksym;
extern int bpf_strcasecmp(const char *s1, const char *s2) __ksym;
extern int bpf_strchr(const char *s, char c) __ksym;
extern int bpf_strchrnul(const char *s, char c) __ksym;
extern int bpf_strnchr(const char *s, __u64 count, char c) __ksym;
extern int bpf_strrchr(const char *s, char c) __ksym;
extern int bpf_strlen(const char *s) __ksym;
extern int bpf_strnlen(const char *s, __u64 count) __ksym;
extern int bpf_strspn(const char *s, const char *accept) __ksym;
extern int bpf_strcspn(const char *s, const char *reject) __ksym;
extern int bpf_strstr(const char *s1, const char *s2) __ksym;
extern int bpf_strnstr(const char *s1, const char *s2, __u64 len) __ksym;

char _license[] SEC("license") = "GPL";

#define ROOM 32
/* calls with text in different places stay calls of their own */
#define APART(n) asm volatile("" :: "i"(n))

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, char[ROOM]);
	__uint(max_entries, 1);
} memory SEC(".maps");

struct command {
	__u32 function, count, character;
	__s32 result;
	char one[ROOM], other[ROOM];
};

const char word[] = "needle";
char own[2][ROOM];

SEC("xdp")
int text(struct xdp_md *ctx)
{
	struct command *c = (void *)(long)ctx->data;
	char other[ROOM];	/* on the stack; `one` is in a map's value, `c->one` in the packet */
	__u32 zero = 0;
	char *one = bpf_map_lookup_elem(&memory, &zero);
	char wanted;
	__u64 count;
	int r = -1;

	if (!one || (void *)(c + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(one, c->one, ROOM);
	__builtin_memcpy(other, c->other, ROOM);
	wanted = c->character;
	count = c->count;
	if (c->count == 0xffffffff)
		count = ~0ULL;
	switch (c->function) {
	case 0: r = bpf_strcmp(one, other); APART(0); break;
	case 1: r = bpf_strcasecmp(other, one); APART(1); break;
	case 2: r = bpf_strchr(c->one, wanted); APART(2); break;
	case 3: r = bpf_strchrnul(one, wanted); APART(3); break;
	case 4: r = bpf_strnchr(other, count, wanted); APART(4); break;
	case 5: r = bpf_strrchr(one, wanted); APART(5); break;
	case 6: r = bpf_strlen(other); APART(6); break;
	case 7: r = bpf_strnlen(c->one, count); APART(7); break;
	case 8: r = bpf_strspn(one, other); APART(8); break;
	case 9: r = bpf_strcspn(one, other); APART(9); break;
	case 10: r = bpf_strstr(c->one, other); APART(10); break;
	case 11: r = bpf_strnstr(one, other, count); APART(11); break;
	case 12: r = bpf_strcmp(word, one); APART(12); break;
	case 13: r = bpf_strnstr(one, c->other, count); APART(13); break;
	/* where a value or a global variable is, nobody knows before */
	case 14: r = bpf_strlen(one + (count & 31)); APART(14); break;
	case 15: r = bpf_strchr(word + (count & 3), wanted & 127); APART(15); break;
	case 16: r = bpf_strstr(one + (count & 7), word + (c->character & 3)); APART(16); break;
	case 17:
		for (int i = 0; i < ROOM; i++)
			own[1][i] = c->other[i];
		r = bpf_strcmp(own[1] + (count & 7), count & 8 ? one + 1 : one);
		APART(17);
		break;
	}
	c->result = r;
	return XDP_PASS;
}
