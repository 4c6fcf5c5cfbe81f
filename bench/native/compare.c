/* Programs without helpers, built twice: for BPF, and for this CPU.  See bench/native_compare.py.
 *
 * Each is a body over a packet; only how it is called differs.  The native side runs bodies in the
 * loop that xdp_runtime/repeat.py generates: the packet is copied into a ring of frames, some
 * iterations ahead, and the body runs on each. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define WORDS 1000
#define BYTES 1400
#define ROTL(x, n) (((x) << (n)) | ((x) >> (64 - (n))))
#define INLINE static inline __attribute__((always_inline))

#ifdef __bpf__
struct xdp_md { u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex; };
#define PROGRAM(name) \
	__attribute__((section("xdp"), used)) int name(struct xdp_md *ctx) \
	{ return body_##name((u8 *)(long)ctx->data, (u8 *)(long)ctx->data_end); }
#else
#define RING 8
#define AHEAD 4
#define PROGRAM(name) \
	u32 native_##name(u8 *frames, const u8 *packet, u64 length, u64 count, u64 stride) \
	{ \
		u32 verdict = 0; \
		for (u64 i = 0; i < AHEAD; i++) \
			__builtin_memcpy(frames + i * stride, packet, length); \
		for (u64 i = 0; i < count; i++) { \
			u8 *at = frames + (i & (RING - 1)) * stride; \
			__builtin_memcpy(frames + ((i + AHEAD) & (RING - 1)) * stride, packet, length); \
			verdict = body_##name(at, at + length); \
			__asm__ volatile("" : "+r"(verdict) : : "memory"); \
		} \
		return verdict; \
	}
#endif

INLINE int body_empty(u8 *data, u8 *end) { return 2; }

INLINE int body_parse_drop(u8 *data, u8 *end)
{
	if (data + 42 > end)
		return 2;
	if (*(u16 *)(data + 12) != 0x0008 || data[23] != 17)
		return 2;
	return *(u16 *)(data + 36) == 0x5000 ? 1 : 2;
}

INLINE int body_mac_swap(u8 *data, u8 *end)
{
	if (data + 14 > end)
		return 2;
	for (int i = 0; i < 3; i++) {
		u16 one = ((u16 *)data)[i];
		((u16 *)data)[i] = ((u16 *)data)[i + 3];
		((u16 *)data)[i + 3] = one;
	}
	return 3;
}

INLINE int body_ipv4_checksum(u8 *data, u8 *end)
{
	u32 sum = 0;
	if (data + 34 > end)
		return 2;
	*(u16 *)(data + 24) = 0;
	for (int i = 0; i < 10; i++)
		sum += ((u16 *)(data + 14))[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	*(u16 *)(data + 24) = ~sum;
	return 3;
}

INLINE int body_checksum_1400(u8 *data, u8 *end)
{
	u64 sum = 0;
	if (data + BYTES + 2 > end)
		return 2;
#pragma clang loop unroll(disable) vectorize(enable)
	for (u32 i = 0; i < BYTES / 2; i++)
		sum += ((u16 *)data)[i];
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	*(u16 *)(data + BYTES) = ~sum;
	return 3;
}

INLINE int body_siphash(u8 *data, u8 *end)
{
	u64 a = 0x736f6d6570736575ULL, b = 0x646f72616e646f6dULL;
	u64 c = 0x6c7967656e657261ULL, d = 0x7465646279746573ULL;
	if (data + 8 * WORDS > end)
		return 2;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < WORDS; i++) {
		u64 word = ((u64 *)data)[i];
		d ^= word;
		a += b; b = ROTL(b, 13); b ^= a; a = ROTL(a, 32);
		c += d; d = ROTL(d, 16); d ^= c;
		a += d; d = ROTL(d, 21); d ^= a;
		c += b; b = ROTL(b, 17); b ^= c; c = ROTL(c, 32);
		a ^= word;
	}
	*(u64 *)data = a ^ b ^ c ^ d;
	return 3;
}

INLINE int body_text_length(u8 *data, u8 *end)
{
	u32 i;
	if (data + BYTES > end)
		return 2;
#pragma clang loop unroll(disable)
	for (i = 0; i < BYTES - 8; i++)
		if (!data[8 + i])
			break;
	*(u32 *)data = i;
	return 3;
}

INLINE int body_byte_copy(u8 *data, u8 *end)
{
	if (data + BYTES > end)
		return 2;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < BYTES / 2; i++)
		data[BYTES / 2 + i] = data[i];
	return 3;
}

INLINE int body_tuple_hash(u8 *data, u8 *end)
{
	u32 a, b, c;
	if (data + 42 > end)
		return 2;
	a = 0xdeadbeef + *(u32 *)(data + 26);
	b = 0xdeadbeef + *(u32 *)(data + 30);
	c = 0xdeadbeef + *(u32 *)(data + 34) + data[23];
#define R(x, n) (((x) << (n)) | ((x) >> (32 - (n))))
	c ^= b; c -= R(b, 14); a ^= c; a -= R(c, 11); b ^= a; b -= R(a, 25);
	c ^= b; c -= R(b, 16); a ^= c; a -= R(c, 4); b ^= a; b -= R(a, 14);
	c ^= b; c -= R(b, 24);
	*(u32 *)data = c;
	return c & 1 ? 1 : 3;
}

PROGRAM(empty)
PROGRAM(parse_drop)
PROGRAM(mac_swap)
PROGRAM(ipv4_checksum)
PROGRAM(checksum_1400)
PROGRAM(siphash)
PROGRAM(text_length)
PROGRAM(byte_copy)
PROGRAM(tuple_hash)
