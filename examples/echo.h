/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Turns an ICMP or ICMPv6 echo request into its reply, in place. */
#pragma once

#include "packet.h"

/* What both ICMPs start with; <linux/icmp.h> needs a C library, which this target lacks. */
struct icmp {
	__u8 type;
	__u8 code;
	__sum16 checksum;
};

enum { ICMP_ECHO_REPLY = 0, ICMP_ECHO = 8, ICMPV6_ECHO = 128, ICMPV6_ECHO_REPLY = 129 };

/* Changes the type and mends the checksum (RFC 1624, equation 3): type is a word's high byte. */
static __always_inline void set_type(struct icmp *icmp, __u8 type)
{
	__u16 old = bpf_htons(icmp->type << 8), new = bpf_htons(type << 8);

	icmp->checksum = ~fold((__u16)~icmp->checksum + (__u16)~old + new);
	icmp->type = type;
}

static __always_inline int echo_v4(struct ethhdr *eth, void *end)
{
	struct iphdr *ip = (void *)(eth + 1);
	struct icmp *icmp = (void *)(ip + 1);
	__be32 addr;

	if (!FITS(ip, end) || ip->version != 4 || ip->ihl != 5 || ip->protocol != IPPROTO_ICMP)
		return 0;
	if (ip->frag_off & IPV4_FRAGMENT)
		return 0;
	if (!FITS(icmp, end) || icmp->type != ICMP_ECHO || icmp->code != 0)
		return 0;
	/* Two addresses change places: the IP checksum stays. */
	addr = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = addr;
	set_type(icmp, ICMP_ECHO_REPLY);
	return 1;
}

static __always_inline int echo_v6(struct ethhdr *eth, void *end)
{
	struct ipv6hdr *ip = (void *)(eth + 1);
	struct icmp *icmp = (void *)(ip + 1);
	struct in6_addr addr;

	if (!FITS(ip, end) || ip->version != 6 || ip->nexthdr != IPPROTO_ICMPV6)
		return 0;
	if (!FITS(icmp, end) || icmp->type != ICMPV6_ECHO || icmp->code != 0)
		return 0;
	/* So does the pseudo-header's sum. */
	addr = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = addr;
	set_type(icmp, ICMPV6_ECHO_REPLY);
	return 1;
}

/* True if the packet is now the answer to itself. */
static __always_inline int answer_echo(struct ethhdr *eth, void *end)
{
	int answered = 0;

	if (!FITS(eth, end) || eth->h_dest[0] & 1) /* no answer to a group */
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		answered = echo_v4(eth, end);
	else if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		answered = echo_v6(eth, end);
	if (answered)
		swap_macs(eth);
	return answered;
}
