// Arithmetic, byte swaps, atomics and branches in many forms, for comparison with llvm-objdump.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

__u64 a, b;
__u32 c, d;
__s64 s;
__s32 t;

SEC("xdp")
int xdp_alu(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 x = a, y = b;
	__u32 u = c, v = d;
	volatile __u16 h;
	volatile __u8 byte;

	if (data + 14 > end)
		return XDP_DROP;
	h = *(__u16 *)(data + 12);
	byte = *(__u8 *)(data + 6);
	if (bpf_ntohs(h) == 0x86dd)
		x = bpf_be64_to_cpu(x);
	if (byte & 0x10)
		v = bpf_htonl(v);
	x = x * 7 + y / 3 - (x % 5) + (x << 3) + (y >> 2) + (x | 0x123456789abcdef);
	x ^= y << (u & 63);
	s = (s >> 3) + (s >> (u & 31)) - s * -1;
	t = -t >> 2;
	u = u * v + v / (u | 1) + (u % 9) - (u << 4) + (v >> (u & 7)) + (~u & 0xff0000ff);
	if (s < -3 || t > 100 || (__s32)u <= (__s32)v)
		x += 1;
	if (u == 5 || v > 77)
		x -= 1;
	__sync_fetch_and_add(&a, x);
	x += __sync_fetch_and_add(&b, y);
	u += __sync_fetch_and_or(&c, v);
	x += __sync_fetch_and_and(&a, y);
	x += __sync_fetch_and_xor(&b, y);
	x += __sync_lock_test_and_set(&a, 3);
	x += __sync_val_compare_and_swap(&b, 3, x);
	u += __sync_lock_test_and_set(&c, 3);
	u += __sync_val_compare_and_swap(&d, 3, u);
	a = x;
	c = u;
	return x > y ? XDP_PASS : XDP_TX;
}

char LICENSE[] SEC("license") = "GPL";
