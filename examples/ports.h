/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Blocked destination ports, for IPv4 and IPv6, TCP and UDP. */
#pragma once

#include "packet.h"

/* Dropped without a control plane (.rodata: the loader may replace them before the load). */
const volatile __u16 default_blocked[2] = {23, 8081};

/* Port, in host byte order -> packets dropped because of it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u16);
	__type(value, __u64);
} blocked_ports SEC(".maps");

/* The transport header, or NULL where there is none to see: not IP, not TCP or UDP, a later
 * fragment, IPv6 extension headers.
 */
static __always_inline struct udphdr *transport_of(struct ethhdr *eth, void *end)
{
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *ports;
	__u8 protocol;

	if (!FITS(eth, end))
		return NULL;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		if (!FITS(ip, end) || ip->version != 4 || ip->ihl < 5)
			return NULL;
		if (ip->frag_off & IPV4_NOT_FIRST)
			return NULL;
		protocol = ip->protocol;
		ports = (void *)ip + ip->ihl * 4;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		if (!FITS(ip6, end) || ip6->version != 6)
			return NULL;
		protocol = ip6->nexthdr;
		ports = (void *)(ip6 + 1);
	} else {
		return NULL;
	}
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return NULL;
	return FITS(ports, end) ? ports : NULL;
}

static __always_inline int is_blocked(struct ethhdr *eth, void *end)
{
	struct udphdr *ports = transport_of(eth, end);
	__u64 *drops;
	__u16 port;

	if (!ports)
		return 0;
	port = bpf_ntohs(ports->dest);
	drops = bpf_map_lookup_elem(&blocked_ports, &port);
	if (drops) {
		__sync_fetch_and_add(drops, 1);
		return 1;
	}
	return port == default_blocked[0] || port == default_blocked[1];
}
