// Hashes over packets as CDNs write them: jhash, siphash, murmur, Toeplitz, FNV; 64x64 multiplication.
#include "edge.h"
RESULTS(16)

#define rol32(x, n) ((x) << (n) | (x) >> (32 - (n)))
#define rol64(x, n) ((x) << (n) | (x) >> (64 - (n)))

static __always_inline __u32 jhash3(__u32 a, __u32 b, __u32 c)
{
	a += 0xdeadbeef, b += 0xdeadbeef, c += 0xdeadbeef;
	c ^= b, c -= rol32(b, 14);
	a ^= c, a -= rol32(c, 11);
	b ^= a, b -= rol32(a, 25);
	c ^= b, c -= rol32(b, 16);
	a ^= c, a -= rol32(c, 4);
	b ^= a, b -= rol32(a, 14);
	c ^= b, c -= rol32(b, 24);
	return c;
}

struct sip {
	__u64 v[4];
};

static __always_inline void round(struct sip *s)
{
	s->v[0] += s->v[1], s->v[1] = rol64(s->v[1], 13) ^ s->v[0], s->v[0] = rol64(s->v[0], 32);
	s->v[2] += s->v[3], s->v[3] = rol64(s->v[3], 16) ^ s->v[2];
	s->v[0] += s->v[3], s->v[3] = rol64(s->v[3], 21) ^ s->v[0];
	s->v[2] += s->v[1], s->v[1] = rol64(s->v[1], 17) ^ s->v[2], s->v[2] = rol64(s->v[2], 32);
}

static __noinline __u64 siphash(__u8 *at, __u8 *end)
{
	struct sip s = {{0x736f6d6570736575, 0x646f72616e646f6d, 0x6c7967656e657261,
			 0x7465646279746573}};
	int i;

	for (i = 0; i < 100; i++, at += 8) {
		if (at + 8 > end)
			break;
		s.v[3] ^= *(__u64 *)at;
		round(&s), round(&s);
		s.v[0] ^= *(__u64 *)at;
	}
	s.v[2] ^= 0xff;
	for (i = 0; i < 4; i++)
		round(&s);
	return s.v[0] ^ s.v[1] ^ s.v[2] ^ s.v[3];
}

static __noinline __u32 toeplitz(const __u8 *key, __u64 high, __u32 low)
{
	__u32 hash = 0, window = 0x6d5a56da, i;

	for (i = 0; i < 96; i++) {
		__u32 bit = i < 64 ? high >> (63 - i) & 1 : low >> (95 - i) & 1;

		if (bit)
			hash ^= window;
		window = window << 1 | (0x255b0ec26d5a56daull >> (i & 63) & 1);
	}
	return hash;
}

// The upper half of a product of two 64-bit numbers.
static __always_inline __u64 mulhi(__u64 a, __u64 b)
{
	__u64 al = (__u32)a, ah = a >> 32, bl = (__u32)b, bh = b >> 32;
	__u64 mid = ah * bl + (al * bl >> 32), cross = al * bh + (__u32)mid;

	return ah * bh + (mid >> 32) + (cross >> 32);
}

SEC("xdp") int hashes(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx), *end = end_of(ctx);
	__u64 sip, fnv = 0xcbf29ce484222325, high;
	__u32 i;

	if (data + 34 > end)
		return XDP_DROP;
	high = *(__u64 *)(data + 26);
	sip = siphash(data, end);
	for (i = 0; i < 34; i++)
		fnv = (fnv ^ data[i]) * 0x100000001b3;
	put(0, jhash3(*(__u32 *)(data + 14), *(__u32 *)(data + 18), *(__u32 *)(data + 22)));
	put(1, sip);
	put(2, toeplitz(data, high, data[3] << 16 | data[4]));
	put(3, fnv);
	put(4, mulhi(sip, fnv));
	put(5, mulhi(sip, 1000)); /* as an index below 1000 */
	*(__u64 *)data = sip;
	return mulhi(sip, 3) + 1;
}

char LICENSE[] SEC("license") = "GPL";
