// Functions within functions, eight deep, each with a frame; five arguments; pointers to callers' frames.
#include "edge.h"
RESULTS(8)

struct pad {
	__u64 a[5];
};

#define DEEPER(name, next)                                                  \
	static __noinline __u64 name(struct pad *caller, __u64 x, __u32 n)  \
	{                                                                   \
		struct pad own = *caller;                                   \
		own.a[n & 3] += x * (__LINE__ | 1) + n;                     \
		x = next(&own, x ^ own.a[(n + 1) & 3], n + 1);              \
		caller->a[n & 3] ^= x;                                      \
		return x + own.a[n & 3];                                    \
	}

static __noinline __u64 bottom(struct pad *caller, __u64 x, __u32 n)
{
	return caller->a[n & 3] * 3 + x;
}
DEEPER(f7, bottom)
DEEPER(f6, f7)
DEEPER(f5, f6)
DEEPER(f4, f5)
DEEPER(f3, f4)
DEEPER(f2, f3)

SEC("xdp") int eight(struct xdp_md *ctx)
{
	struct pad pad = {{1, 2, 3, 4, 5}};
	__u8 *data = data_of(ctx);
	__u64 x;

	if (data + 24 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	x = f2(&pad, *(__u64 *)(data + 8), data[0]);
	put(0, x);
	put(1, pad.a[0] ^ pad.a[1] ^ pad.a[2] ^ pad.a[3] ^ pad.a[4]);
	*(__u64 *)data = x;
	return x & 1 ? XDP_TX : XDP_PASS;
}

// 480 bytes in one called frame: with the caller's, as many as the kernel allows.
static __noinline __u32 large(__u8 *data, __u8 *end, __u32 pick)
{
	volatile __u8 buffer[440];
	__u32 i, sum = 0;

	for (i = 0; i < 440; i++)
		buffer[i] = i * 7;
	for (i = 0; i < 64; i++) {
		if (data + i + 1 > end)
			break;
		buffer[(data[i] * 2 + i) & 255] ^= data[i];
	}
	for (i = 0; i < 440; i++)
		sum = sum * 33 + buffer[i];
	return sum + buffer[pick & 255];
}

SEC("xdp") int one_large(struct xdp_md *ctx)
{
	__u32 sum = large(data_of(ctx), end_of(ctx), ctx->data_end - ctx->data);

	put(0, sum);
	return sum & 1 ? XDP_TX : XDP_DROP;
}

static __noinline long five(__u64 a, __u32 b, __s16 c, __u8 d, bool e)
{
	return a * 3 + b * 5 + c * 7 + d * 11 + (e ? 13 : -13);
}

// Its callers' packet pointers come back shifted.
static __noinline void *skip(void *at, void *end, __u32 n)
{
	at += n & 63;
	return at + 4 <= end ? at : 0;
}

SEC("xdp") int arguments(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx), *end = end_of(ctx);
	__u32 *word;
	long sum;

	if (data + 32 > end)
		return XDP_DROP;
	sum = five(*(__u64 *)(data + 1), *(__u32 *)(data + 9), *(__s16 *)(data + 13), data[15],
		   data[16] & 1);
	word = skip(data, end, data[17]);
	if (word)
		*word += sum;
	put(0, sum);
	put(1, word ? *word : 77);
	return sum < 0 ? XDP_TX : XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
