// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Without maps but for what they compute.  All leave the packet as they found it, or undo their own
 * change, so that they can be repeated. */
#include "micro.h"

#define WORDS 1000
#define BYTES 1400
#define ROTL(x, n) (((x) << (n)) | ((x) >> (64 - (n))))

static u64 words[WORDS] = {1, 2, 3};
static volatile u64 digest;

INLINE int body_empty(u8 *data, u8 *end)
{
	return PASS;
}

INLINE int body_parse_drop(u8 *data, u8 *end)
{
	if (data + 42 > end)
		return PASS;
	if (*(u16 *)(data + 12) != 0x0008 || data[23] != 17)
		return PASS;
	return *(u16 *)(data + 36) == 0x5000 ? DROP : PASS;
}

INLINE int body_mac_swap(u8 *data, u8 *end)
{
	if (data + 14 > end)
		return PASS;
	for (int i = 0; i < 3; i++) {
		u16 one = ((u16 *)data)[i];
		((u16 *)data)[i] = ((u16 *)data)[i + 3];
		((u16 *)data)[i + 3] = one;
	}
	return TX;
}

INLINE int body_ipv4_checksum(u8 *data, u8 *end)
{
	u32 sum = 0;
	if (data + 34 > end)
		return PASS;
	*(u16 *)(data + 24) = 0;
	for (int i = 0; i < 10; i++)
		sum += ((u16 *)(data + 14))[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	*(u16 *)(data + 24) = ~sum;
	return TX;
}

INLINE int body_tuple_hash(u8 *data, u8 *end)
{
	u32 a, b, c;
	if (data + 42 > end)
		return ABORTED;
	a = 0xdeadbeef + *(u32 *)(data + 26);
	b = 0xdeadbeef + *(u32 *)(data + 30);
	c = 0xdeadbeef + *(u32 *)(data + 34) + data[23];
#define R(x, n) (((x) << (n)) | ((x) >> (32 - (n))))
	c ^= b; c -= R(b, 14); a ^= c; a -= R(c, 11); b ^= a; b -= R(a, 25);
	c ^= b; c -= R(b, 16); a ^= c; a -= R(c, 4); b ^= a; b -= R(a, 14);
	c ^= b; c -= R(b, 24);
	digest = c;
	return PASS;
}

INLINE int body_checksum_1400(u8 *data, u8 *end)
{
	u64 sum = 0;
	if (data + BYTES > end)
		return ABORTED;
#pragma clang loop unroll(disable) vectorize(enable)
	for (u32 i = 0; i < BYTES / 2; i++)
		sum += ((u16 *)data)[i];
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	digest = ~sum;
	return PASS;
}

/* To the packet's end, which is compared with each time. */
INLINE int body_checksum_to_end(u8 *data, u8 *end)
{
	u16 *word = (void *)data;
	u32 sum = 0;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < 750; i++) {
		if ((u8 *)(word + 1) > end)
			break;
		sum += *word++;
	}
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	digest = (u16)~sum;
	return PASS;
}

INLINE int body_siphash(u8 *data, u8 *end)
{
	u64 a = 0x736f6d6570736575ULL, b = 0x646f72616e646f6dULL;
	u64 c = 0x6c7967656e657261ULL, d = 0x7465646279746573ULL;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < WORDS; i++) {
		u64 word = *(volatile u64 *)&words[i];
		d ^= word;
		a += b; b = ROTL(b, 13); b ^= a; a = ROTL(a, 32);
		c += d; d = ROTL(d, 16); d ^= c;
		a += d; d = ROTL(d, 21); d ^= a;
		c += b; b = ROTL(b, 17); b ^= c; c = ROTL(c, 32);
		a ^= word;
	}
	digest = a ^ b ^ c ^ d;
	return PASS;
}

INLINE int body_strlen(u8 *data, u8 *end)
{
	u32 i;
	if (data + BYTES > end)
		return ABORTED;
#pragma clang loop unroll(disable)
	for (i = 0; i < BYTES; i++)
		if (!data[i])
			break;
	digest = i;
	return PASS;
}

INLINE int body_memcpy(u8 *data, u8 *end)
{
	if (data + BYTES > end)
		return ABORTED;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < BYTES / 2; i++)
		data[BYTES / 2 + i] = data[i];
	return PASS;
}

PROGRAM(empty)
PROGRAM(parse_drop)
PROGRAM(mac_swap)
PROGRAM(ipv4_checksum)
PROGRAM(tuple_hash)
PROGRAM(checksum_1400)
PROGRAM(checksum_to_end)
PROGRAM(siphash)
PROGRAM(strlen)
PROGRAM(memcpy)
