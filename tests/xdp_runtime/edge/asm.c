// Instructions that clang 14 has no words for, as bytes: cpu v4 and later, in a program's middle.
#include "edge.h"
RESULTS(16)

// opcode, destination and source register, offset, immediate
#define INSN(code, dst, src, off, imm)                                                        \
	".byte " #code ", " #src " << 4 | " #dst "; .short " #off "; .long " #imm "\n"

SEC("xdp") int swaps(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx);
	__u64 x, y, z, b, l;

	if (data + 24 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	x = y = z = b = l = *(__u64 *)(data + 3);
	asm volatile("r1 = %0\n" INSN(0xd7, 1, 0, 0, 16) "%0 = r1" : "+r"(x)::"r1"); /* bswap16 */
	asm volatile("r1 = %0\n" INSN(0xd7, 1, 0, 0, 32) "%0 = r1" : "+r"(y)::"r1");
	asm volatile("r1 = %0\n" INSN(0xd7, 1, 0, 0, 64) "%0 = r1" : "+r"(z)::"r1");
	asm volatile("%0 = be16 %0" : "+r"(b));
	asm volatile("%0 = le32 %0" : "+r"(l));
	put(0, x);
	put(1, y);
	put(2, z);
	put(3, b);
	put(4, l);
	*(__u64 *)(data + 8) = x ^ y ^ z ^ b ^ l;
	return XDP_TX;
}

SEC("xdp") int divisions(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx);
	__u64 a, b, r[8];

	if (data + 24 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	a = *(__u64 *)data;
	b = data[8] & 1 ? (long)(signed char)data[9] : *(__u64 *)(data + 8);
	if (data[10] < 8)
		a = 1ull << 63;
#define DIVIDE(code, off) ({                                                                  \
	__u64 q = a;                                                                          \
	asm volatile("r1 = %0; r2 = %1\n" INSN(code, 1, 2, off, 0) "%0 = r1"                   \
		     : "+r"(q) : "r"(b) : "r1", "r2");                                        \
	q;                                                                                    \
})
	put(0, DIVIDE(0x3f, 0)); /* r1 /= r2 */
	put(1, DIVIDE(0x3f, 1)); /* r1 s/= r2 */
	put(2, DIVIDE(0x9f, 0));
	put(3, DIVIDE(0x9f, 1));
	put(4, DIVIDE(0x3c, 0)); /* w1 /= w2 */
	put(5, DIVIDE(0x3c, 1));
	put(6, DIVIDE(0x9c, 0));
	put(7, DIVIDE(0x9c, 1));
	return XDP_PASS;
}

SEC("xdp") int extensions(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx);
	__u64 local, x, sum = 0;

	if (data + 24 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	local = *(__u64 *)(data + 5);
#define EXTEND(code, off) ({                                                                  \
	asm volatile("r2 = %1\n" INSN(code, 1, 2, off, 0) "%0 = r1"                           \
		     : "=r"(x) : "r"(local) : "r1", "r2");                                    \
	sum = sum * 31 + x;                                                                   \
})
	EXTEND(0xbf, 8); /* r1 = (s8)r2 */
	EXTEND(0xbf, 16);
	EXTEND(0xbf, 32);
	EXTEND(0xbc, 8); /* w1 = (s8)w2 */
	EXTEND(0xbc, 16);
	put(0, sum);
#define SIGNED(code, at) ({                                                                   \
	asm volatile("r2 = %1\n" INSN(code, 1, 2, at, 0) "%0 = r1"                            \
		     : "=r"(x) : "r"(data) : "r1", "r2", "memory");                           \
	sum = sum * 31 + x;                                                                   \
})
	SIGNED(0x91, 3); /* r1 = *(s8 *)(r2 + 3) */
	SIGNED(0x89, 7);
	SIGNED(0x81, 9);
	put(1, sum);
	*(__u64 *)data = sum;
	return sum & 1 ? XDP_TX : XDP_PASS;
}

// may_goto bounds a loop that nothing else bounds; gotol jumps 32 bits far.
SEC("xdp") int jumps(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx);
	__u64 rounds = 0, x;

	if (data + 24 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	x = *(__u64 *)data;
	asm volatile("r1 = %0; r2 = 0\n"
		     "1: .byte 0xe5, 0; .short 3; .long 0\n" /* may_goto 2f */
		     "r2 += 1\n"
		     "r1 <<= 5\n"
		     "if r1 != 0 goto 1b\n"
		     "2: if r1 == 0 goto 4f\n"
		     ".byte 0x06, 0; .short 0; .long 1\n" /* gotol 3f */
		     "4: r2 += 77\n"
		     "3: %0 = r1; %1 = r2\n"
		     : "+r"(x), "+r"(rounds)::"r1", "r2");
	put(0, rounds);
	put(1, x);
	return rounds & 1 ? XDP_TX : XDP_PASS;
}

SEC("xdp") int atomics(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx);
	__u32 key = 9, small;
	__u64 *cell = bpf_map_lookup_elem(&results, &key), x, local = 5, sum = 0;

	if (data + 24 > (__u8 *)end_of(ctx) || !cell)
		return XDP_DROP;
	x = *(__u64 *)(data + 2);
	small = x;
	sum += __sync_fetch_and_add(cell, x);
	sum = sum * 31 + __sync_fetch_and_or(cell, x << 3);
	sum = sum * 31 + __sync_fetch_and_and(cell, ~x);
	sum = sum * 31 + __sync_fetch_and_xor(cell, x << 7);
	sum = sum * 31 + __sync_lock_test_and_set(cell, x);
	sum = sum * 31 + __sync_val_compare_and_swap(cell, x & ~1ull, sum);
	sum = sum * 31 + __sync_fetch_and_add((__u32 *)cell + 1, small);
	sum = sum * 31 + __sync_fetch_and_xor((__u32 *)cell, small);
	sum = sum * 31 + __sync_val_compare_and_swap((__u32 *)cell, small, small * 3);
	sum = sum * 31 + __sync_lock_test_and_set((__u32 *)cell + 1, small + 1);
	__sync_fetch_and_add(cell, 3);
	sum = sum * 31 + __sync_fetch_and_add(&local, x);
	sum = sum * 31 + __sync_val_compare_and_swap(&local, x + 5, x);
	put(10, sum);
	put(11, local);
	return XDP_PASS;
}

SEC("xdp") int acquire_and_release(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx);
	__u32 key = 9;
	__u64 *cell = bpf_map_lookup_elem(&results, &key), x, sum = 0;

	if (data + 24 > (__u8 *)end_of(ctx) || !cell)
		return XDP_DROP;
	x = *(__u64 *)(data + 2);
#define RELEASE(code, at)                                                                     \
	asm volatile("r1 = %0; r2 = %1\n" INSN(code, 1, 2, at, 0x110)                         \
		     ::"r"(cell), "r"(x) : "r1", "r2", "memory")
#define ACQUIRE(code, at) ({                                                                  \
	__u64 got;                                                                            \
	asm volatile("r2 = %1\n" INSN(code, 1, 2, at, 0x100) "%0 = r1"                        \
		     : "=r"(got) : "r"(cell) : "r1", "r2", "memory");                         \
	sum = sum * 31 + got;                                                                 \
})
	RELEASE(0xdb, 0); /* store_release((u64 *)(r1 + 0), r2) */
	ACQUIRE(0xc3, 4); /* r1 = load_acquire((u32 *)(r2 + 4)) */
	RELEASE(0xc3, 4);
	ACQUIRE(0xdb, 0);
	RELEASE(0xcb, 2);
	ACQUIRE(0xd3, 3);
	RELEASE(0xd3, 1);
	ACQUIRE(0xcb, 0);
	put(10, sum);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
