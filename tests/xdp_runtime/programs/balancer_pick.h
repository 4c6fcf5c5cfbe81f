/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which server gets a packet: the one that the packet names, the one that had the connection
 * before, or the one that the hash of the flow falls on.
 */
#pragma once

#include "balancer_parse.h"

#define UDP_TIMEOUT_NS 30000000000ULL
#define SECOND_NS 1000000000ULL
#define MAX_NEW_PER_SECOND 1000000
#define MAX_OPTIONS 11
#define OPTION_SERVER_ID 0xb7
#define OPTION_SERVER_ID_LEN 6
#define OPTION_TIMESTAMP 8
#define OPTION_TIMESTAMP_LEN 10
#define DATAGRAM_MAGIC 0x52
#define OPTION_MSS 2
#define OPTION_MSS_LEN 4
#define CLAMPED_MSS 1380

#define ROTATE(x, by) ((x) << (by) | (x) >> (32 - (by)))

/* The lookup3 hash of words (Bob Jenkins, public domain), as the kernel's jhash2 has it. */
static __always_inline void mix(__u32 *abc)
{
	__u32 a = abc[0], b = abc[1], c = abc[2];

	a -= c; a ^= ROTATE(c, 4); c += b;
	b -= a; b ^= ROTATE(a, 6); a += c;
	c -= b; c ^= ROTATE(b, 8); b += a;
	a -= c; a ^= ROTATE(c, 16); c += b;
	b -= a; b ^= ROTATE(a, 19); a += c;
	c -= b; c ^= ROTATE(b, 4); b += a;
	abc[0] = a;
	abc[1] = b;
	abc[2] = c;
}

static __always_inline __u32 finish(__u32 *abc)
{
	__u32 a = abc[0], b = abc[1], c = abc[2];

	c ^= b; c -= ROTATE(b, 14);
	a ^= c; a -= ROTATE(c, 11);
	b ^= a; b -= ROTATE(a, 25);
	c ^= b; c -= ROTATE(b, 16);
	a ^= c; a -= ROTATE(c, 4);
	b ^= a; b -= ROTATE(a, 14);
	c ^= b; c -= ROTATE(b, 24);
	return c;
}

static __always_inline __u32 hash_of(const struct flow *flow, const int v6)
{
	__u32 ports = (__u32)flow->sport << 16 | flow->dport;
	__u32 words = v6 ? 5 : 2, start = 0xdeadbeef + (words << 2) + RING_SLOTS;
	__u32 abc[3] = {start, start, start};

	if (v6) {
		abc[0] += flow->src[0];
		abc[1] += flow->src[1];
		abc[2] += flow->src[2];
		mix(abc);
		abc[0] += flow->src[3];
		abc[1] += ports;
	} else {
		abc[0] += flow->src[0];
		abc[1] += ports;
	}
	return finish(abc);
}

static __always_inline __u32 look_in_ring(const struct packet *packet, const struct vip *vip,
					  const int v6)
{
	struct flow flow = *packet->flow;
	__u32 slot, *real;

	if (vip->flags & VIP_HASH_DST_PORT) {
		flow.sport = flow.dport;
		__builtin_memset(flow.src, 0, sizeof(flow.src));
	}
	slot = vip->number * RING_SLOTS + hash_of(&flow, v6) % RING_SLOTS;
	real = bpf_map_lookup_elem(&rings, &slot);
	return real ? *real : 0;
}

/* True where more new connections arrive than the table should learn. */
static __always_inline int is_flooded(void)
{
	__u32 key = 0;
	struct rate *rate = bpf_map_lookup_elem(&new_connections, &key);
	__u64 now = bpf_ktime_get_ns();

	if (!rate)
		return 1;
	if (now - rate->since_ns > SECOND_NS) {
		rate->since_ns = now;
		rate->count = 1;
		return 0;
	}
	rate->count++;
	if (rate->count <= MAX_NEW_PER_SECOND)
		return 0;
	count(FLOODED);
	return 1;
}

static __always_inline void remember(const struct packet *packet, __u32 real)
{
	struct connection fresh = {.real = real};

	if (packet->state & IS_RST || is_flooded())
		return;
	if (packet->flow->protocol == IPPROTO_UDP)
		fresh.seen_ns = bpf_ktime_get_ns();
	bpf_map_update_elem(&connections, packet->flow, &fresh, BPF_ANY);
}

/* The server that had the connection, 0 if nobody. */
static __always_inline __u32 recall(const struct packet *packet)
{
	struct connection *known = bpf_map_lookup_elem(&connections, packet->flow);
	__u64 now;

	if (!known) {
		count(TABLE_MISSES);
		return 0;
	}
	if (packet->flow->protocol == IPPROTO_UDP) {
		now = bpf_ktime_get_ns();
		if (now - known->seen_ns > UDP_TIMEOUT_NS) {
			count(EXPIRED);
			return 0;
		}
		known->seen_ns = now;
	}
	count(TABLE_HITS);
	return known->real;
}

/* Server number in a QUIC connection id that we made up, 0 if there is none.  A client's first
 * packets carry an id that it made up itself.
 */
static __always_inline __u32 quic_server_id(const struct packet *packet, void *data, void *end)
{
	__u8 *first = data + packet->transport + sizeof(struct udphdr), *id;

	if ((void *)(first + 9) > end)
		return 0;
	if (first[0] & 0x80) {
		if ((void *)(first + 14) > end)
			return 0;
		if ((first[0] & 0x30) < 0x20) {
			count(QUIC_INITIAL);
			return 0;
		}
		if (first[5] < 8)
			return 0;
		id = first + 6;
	} else {
		id = first + 1;
	}
	switch (id[0] >> 6) {
	case 1:
		return (id[0] & 0x3f) << 10 | id[1] << 2 | id[2] >> 6;
	case 2:
		return id[1] << 16 | id[2] << 8 | id[3];
	case 3:
		return (__u32)id[1] << 24 | id[2] << 16 | id[3] << 8 | id[4];
	}
	return 0;
}

/* How far behind the TCP header's start the option of that kind is, 0 if it is nowhere. */
static __always_inline __u32 find_option(const struct packet *packet, void *data, void *end,
					 __u8 kind, __u8 len)
{
	struct tcphdr *tcp = data + packet->transport;
	__u32 at = sizeof(*tcp), stop, step;
	__u8 *option;

	if (!FITS(tcp, end))
		return 0;
#ifdef UNROLL_OPTIONS
#pragma clang loop unroll(full)
#else
#pragma clang loop unroll(disable)
#endif
	for (int i = 0; i < MAX_OPTIONS; i++) {
		/* Whatever came before, this is all that is known here: verifiers need not try every
		 * combination of options.  The compiler must not see that it changes nothing.
		 */
		asm volatile("" : "+r"(at));
		at &= 0x3f;
		stop = (*(volatile __u8 *)((void *)tcp + 12) & 0xf0) >> 2;
		option = (void *)tcp + at;
		if (at + len > stop || (void *)(option + 2) > end || !option[0])
			return 0;
		if (option[0] == kind && option[1] == len)
			return at;
		/* The one that does nothing, of kind 1, is its own length. */
		step = option[0] == 1 ? *(volatile __u8 *)option : option[1];
		at += step;
		if (!step || at > stop)
			return 0;
	}
	return 0;
}

static __always_inline __u32 tcp_server_id(const struct packet *packet, void *data, void *end)
{
	__u32 at = find_option(packet, data, end, OPTION_SERVER_ID, OPTION_SERVER_ID_LEN);
	__u8 *option = data + packet->transport + at;

	if (!at || (void *)(option + OPTION_SERVER_ID_LEN) > end)
		return 0;
	return option[2] | option[3] << 8 | option[4] << 16 | (__u32)option[5] << 24;
}

#ifdef WITH_TIMESTAMP_IDS
/* A server that put its number into the upper half of its timestamps gets it back. */
static __always_inline __u32 tcp_timestamp_id(const struct packet *packet, void *data, void *end)
{
	__u32 at = find_option(packet, data, end, OPTION_TIMESTAMP, OPTION_TIMESTAMP_LEN);
	__u8 *option = data + packet->transport + at;

	if (!at || (void *)(option + OPTION_TIMESTAMP_LEN) > end)
		return 0;
	return option[6] << 8 | option[7];
}
#endif

#ifdef WITH_DATAGRAM_IDS
static __always_inline __u32 datagram_id(const struct packet *packet, void *data, void *end)
{
	__u8 *payload = data + packet->transport + sizeof(struct udphdr);

	if ((void *)(payload + 4) > end || payload[0] != DATAGRAM_MAGIC)
		return 0;
	return payload[1] << 16 | payload[2] << 8 | payload[3];
}
#endif

#ifdef WITH_CLAMPED_MSS
/* A segment that fills the path leaves no room for the tunnel: promise less. */
static __always_inline void clamp_mss(const struct packet *packet, void *data, void *end)
{
	__u32 at = find_option(packet, data, end, OPTION_MSS, OPTION_MSS_LEN);
	struct tcphdr *tcp = data + packet->transport;
	__u8 *option = (void *)tcp + at;
	__be16 old, new = bpf_htons(CLAMPED_MSS);

	if (!at || (void *)(option + OPTION_MSS_LEN) > end || !FITS(tcp, end))
		return;
	old = bpf_htons(option[2] << 8 | option[3]);
	if (bpf_ntohs(old) <= CLAMPED_MSS)
		return;
	option[2] = CLAMPED_MSS >> 8;
	option[3] = CLAMPED_MSS & 0xff;
	/* At an odd place the bytes of its words are the other way round. */
	if (at & 1) {
		old = old << 8 | old >> 8;
		new = new << 8 | new >> 8;
	}
	tcp->check = mend(tcp->check, old, new);
	count(CLAMPED);
}
#endif

#ifdef WITH_SOURCE_ROUTES
static __always_inline __u32 source_route(const struct packet *packet, const int v6)
{
	__be32 prefix[4] = {packet->flow->src[0], 0, 0, 0};
	__u32 *real;

	if (v6) {
		copy_address(prefix, packet->flow->src);
		real = bpf_map_lookup_elem(&source_routes_v6, prefix);
		if (!real) {
			prefix[1] &= bpf_htonl(0xffff0000);
			prefix[2] = prefix[3] = 0;
			real = bpf_map_lookup_elem(&source_routes_v6, prefix);
		}
	} else {
		prefix[0] &= bpf_htonl(0xffffff00);
		real = bpf_map_lookup_elem(&source_routes_v4, prefix);
		if (!real) {
			prefix[0] &= bpf_htonl(0xffff0000);
			real = bpf_map_lookup_elem(&source_routes_v4, prefix);
		}
	}
	if (!real)
		return 0;
	count(SOURCE_ROUTED);
	return *real;
}
#endif

#ifdef WITH_SHARED_TABLE
/* What another balancer decided; a reset ends it for all. */
static __always_inline __u32 recall_shared(const struct packet *packet)
{
	__u32 real, *known = bpf_map_lookup_elem(&shared_connections, packet->flow);

	if (!known)
		return 0;
	count(SHARED_HITS);
	real = *known;
	if (packet->state & IS_RST)
		bpf_map_delete_elem(&shared_connections, packet->flow);
	return real;
}
#endif

#ifdef WITH_MOVES
/* A connection that follows its id elsewhere takes its entry in the table along. */
static __always_inline void move(const struct packet *packet, __u32 real)
{
	struct connection *known = bpf_map_lookup_elem(&connections, packet->flow);

	if (!known) {
		remember(packet, real);
	} else if (known->real != real) {
		known->real = real;
		count(QUIC_MOVED);
	}
}
#endif

static __always_inline __u32 real_by_id(__u32 id, __u32 routed, __u32 unknown)
{
	__u32 *real;

	if (!id)
		return 0;
	real = bpf_map_lookup_elem(&server_ids, &id);
	count(real ? routed : unknown);
	return real ? *real : 0;
}

/* The server that the packet itself names, 0 if none. */
static __always_inline __u32 named_real(const struct packet *packet, const struct vip *vip,
					void *data, void *end)
{
	__u32 real = 0;

	if (packet->state & IN_ICMP)
		return 0;
	if (packet->flow->protocol == IPPROTO_UDP) {
#ifdef WITH_DATAGRAM_IDS
		if (vip->flags & VIP_DATAGRAM_ID)
			real = real_by_id(datagram_id(packet, data, end), ID_ROUTED, ID_UNKNOWN);
		if (real)
			return real;
#endif
		if (!(vip->flags & VIP_QUIC))
			return 0;
		real = real_by_id(quic_server_id(packet, data, end), QUIC_ROUTED, QUIC_UNKNOWN);
#ifdef WITH_MOVES
		if (real && !(vip->flags & VIP_NO_TABLE))
			move(packet, real);
#endif
		return real;
	}
	if (packet->state & IS_SYN)
		return 0;
	if (vip->flags & VIP_SERVER_ID)
		real = real_by_id(tcp_server_id(packet, data, end), ID_ROUTED, ID_UNKNOWN);
#ifdef WITH_TIMESTAMP_IDS
	if (!real && vip->flags & VIP_TIMESTAMP_ID)
		real = real_by_id(tcp_timestamp_id(packet, data, end), ID_ROUTED, ID_UNKNOWN);
#endif
	return real;
}

/* 0 if there is no server. */
static __always_inline __u32 pick(struct packet *packet, const struct vip *vip, void *data,
				  void *end, const int v6)
{
	__u32 real = named_real(packet, vip, data, end);

	if (real)
		return real;
	if (packet->state & IS_SYN)
		count(SYN_MISSES);
	else if (!(vip->flags & VIP_NO_TABLE))
		real = recall(packet);
	if (real)
		return real;
#ifdef WITH_SHARED_TABLE
	if (vip->flags & VIP_SHARED_TABLE && !(packet->state & IS_SYN))
		real = recall_shared(packet);
	if (real) {
		remember(packet, real);
		return real;
	}
#endif
#ifdef WITH_SOURCE_ROUTES
	if (vip->flags & VIP_SOURCE_ROUTES)
		real = source_route(packet, v6);
	if (!real)
#endif
		real = look_in_ring(packet, vip, v6);
	if (real && !(vip->flags & VIP_NO_TABLE))
		remember(packet, real);
#ifdef WITH_SHARED_TABLE
	if (real && vip->flags & VIP_SHARED_TABLE)
		bpf_map_update_elem(&shared_connections, packet->flow, &real, BPF_NOEXIST);
#endif
	return real;
}
