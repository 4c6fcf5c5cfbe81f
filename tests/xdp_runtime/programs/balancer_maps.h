/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a balancer knows: addresses it answers for, servers behind them, connections, counters.
 * Addresses and ports are in network byte order; an IPv4 address is the first of four words.
 */
#pragma once

#include "packet.h"

#define MAX_VIPS 32
#define MAX_REALS 256
#define RING_SLOTS 1021 /* a prime, so that every stride walks the whole ring */
#define MAX_CONNECTIONS 8192

enum vip_flags {
	VIP_NO_SRC_PORT = 1,   /* all ports of a client go to one server */
	VIP_NO_TABLE = 2,      /* no connection is remembered */
	VIP_QUIC = 4,          /* the server's number is in the connection id */
	VIP_HASH_DST_PORT = 8, /* the destination port alone decides */
	VIP_SOURCE_ROUTES = 16,
	VIP_SERVER_ID = 32,    /* the server's number is in a TCP option */
	VIP_CLAMP_MSS = 64,
	VIP_KEEP_PORT = 128,   /* found by port 0: flows are told apart by port nevertheless */
	VIP_TIMESTAMP_ID = 256,  /* the server's number is in the TCP timestamp that is echoed */
	VIP_DATAGRAM_ID = 512,   /* the server's number is at the start of a datagram */
	VIP_SHARED_TABLE = 1024, /* connections of other balancers are looked for, too */
};

enum real_flags { REAL_V6 = 1, REAL_LOCAL = 2, REAL_GUE = 4, REAL_GRE = 8 };
enum tunnel_flags { TUNNEL_KEEP_TTL = 1, TUNNEL_NO_GUE = 2 };

struct vip_key {
	__be32 addr[4];
	__be16 port;
	__u8 protocol;
	__u8 zero;
};

struct vip {
	__u32 flags;
	__u32 number;
};

struct flow {
	__be32 src[4];
	__be32 dst[4];
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 zero[3];
};

struct connection {
	__u32 real; /* 0 is nobody */
	__u32 zero;
	__u64 seen_ns; /* kept for UDP, which never says goodbye */
};

struct real {
	__be32 addr[4];
	__u32 flags;
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

struct rate {
	__u64 count;
	__u64 since_ns;
};

struct mac {
	__u8 addr[ETH_ALEN];
	__u8 zero[2];
};

enum counters {
	TOTAL,
	SENT,
	DROPPED,
	PASSED,
	MALFORMED,
	FRAGMENTS,
	ECHOES,
	ICMP_ERRORS,
	TUNNELS_LEFT,
	GUE_LEFT,
	PORT_ZERO,
	TABLE_HITS,
	TABLE_MISSES,
	SYN_MISSES,
	EXPIRED,
	FLOODED,
	TOO_BIG,
	NO_REAL,
	NOT_SENT,
	SOURCE_ROUTED,
	LOCAL,
	CLAMPED,
	QUIC_INITIAL,
	QUIC_ROUTED,
	QUIC_UNKNOWN,
	QUIC_MOVED,
	ID_ROUTED,
	ID_UNKNOWN,
	EXTENSION_HEADERS,
	SHARED_HITS,
	COUNTERS,
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_VIPS);
	__type(key, struct vip_key);
	__type(value, struct vip);
} vips SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_CONNECTIONS);
	__type(key, struct flow);
	__type(value, struct connection);
} connections SEC(".maps");

/* A ring for each VIP: which server has which share of the hash. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_VIPS * RING_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} rings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_REALS);
	__type(key, __u32);
	__type(value, struct real);
} reals SEC(".maps");

/* 0: our address in IPv4, 1: in IPv6, for tunnels and errors of ours. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct real);
} own_addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mac);
} next_hop SEC(".maps");

/* Number that a client was told -> server. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} server_ids SEC(".maps");

/* Addresses at which tunnels end here. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__uint(key_size, 16);
	__type(value, __u32);
} tunnel_ends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, struct counter);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_VIPS);
	__type(key, __u32);
	__type(value, struct counter);
} vip_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_REALS);
	__type(key, __u32);
	__type(value, struct counter);
} real_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rate);
} new_connections SEC(".maps");

#ifdef WITH_SOURCE_ROUTES
/* The first 24 bits of a client's IPv4 address -> server. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __be32);
	__type(value, __u32);
} source_routes_v4 SEC(".maps");

/* The first 48 bits, or all 128, of a client's IPv6 address -> server. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__uint(key_size, 16);
	__type(value, __u32);
} source_routes_v6 SEC(".maps");
#endif

#ifdef WITH_SHARED_TABLE
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_CONNECTIONS);
	__type(key, struct flow);
	__type(value, __u32);
} shared_connections SEC(".maps");
#endif

struct programs {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__array(values, int (struct xdp_md *));
};

extern struct programs programs; /* in balancer.h, where the program is known */

static __always_inline void count_in(void *map, __u32 key, __u64 bytes)
{
	struct counter *counter = bpf_map_lookup_elem(map, &key);

	if (counter) {
		counter->packets++;
		counter->bytes += bytes;
	}
}

static __always_inline void count(__u32 what)
{
	count_in(&counters, what, 0);
}
