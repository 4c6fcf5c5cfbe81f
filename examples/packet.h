/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What every example needs: the kernel's headers, and the few words C lacks. */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define IPV4_FRAGMENT bpf_htons(0x3fff)  /* more fragments, or not the first one */
#define IPV4_NOT_FIRST bpf_htons(0x1fff) /* a later fragment: no transport header */

/* Context fields are 32 bits wide in the uapi; these are the pointers they stand for. */
#define DATA(ctx) ((void *)(long)(ctx)->data)
#define DATA_END(ctx) ((void *)(long)(ctx)->data_end)
#define DATA_META(ctx) ((void *)(long)(ctx)->data_meta)

/* True if the whole of *header lies inside the packet. */
#define FITS(header, end) ((void *)((header) + 1) <= (end))

static __always_inline void swap_macs(struct ethhdr *eth)
{
	__u8 mac[ETH_ALEN];

	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
}

/* A one's complement sum, folded to 16 bits (not inverted). */
static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}
