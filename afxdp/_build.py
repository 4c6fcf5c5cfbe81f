"""Builds afxdp._native: what libxdp and libbpf know of XDP programs, and the few system calls of an
AF_XDP socket that Python has no words for, by cffi in API mode.

Only what sets a socket up is here (xsk.py).  The rings are driven by compiled code (rings.py).
"""

from __future__ import annotations

import shutil
import subprocess
import sys

from cffi import FFI  # type: ignore[import-untyped]

LIBRARIES = ("libxdp", "libbpf")

CDEF = """
typedef uint16_t __u16;
typedef uint32_t __u32;
typedef uint64_t __u64;

struct xdp_statistics {
    __u64 rx_dropped; __u64 rx_invalid_descs; __u64 tx_invalid_descs;
    __u64 rx_ring_full; __u64 rx_fill_ring_empty_descs; __u64 tx_ring_empty_descs;
    ...;
};

int bpf_xdp_query_id(int ifindex, int flags, __u32 *prog_id);

void be_quiet(void);
int bind_queue(int fd, __u32 ifindex, __u32 queue, __u32 flags, __u32 shared_fd);
int max_tx_budget(int fd, __u32 packets);
int read_statistics(int fd, struct xdp_statistics *statistics);
int is_zero_copy(int fd);
int socket_error(int fd);
"""

SOURCE = """
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <linux/if_xdp.h>
#include <bpf/libbpf.h>
#include <xdp/libxdp.h>

#ifndef SOL_XDP
#define SOL_XDP 283
#endif
#ifndef XDP_MAX_TX_SKB_BUDGET /* Linux 6.17 */
#define XDP_MAX_TX_SKB_BUDGET 9
#endif

/* What the libraries print on stderr is in our errors already. */
static void be_quiet(void)
{
    libbpf_set_print(NULL);
    libxdp_set_print(NULL);
}

/* 0 or a negative errno, as of all below */
static int bind_queue(int fd, __u32 ifindex, __u32 queue, __u32 flags, __u32 shared_fd)
{
    struct sockaddr_xdp address = {.sxdp_family = AF_XDP, .sxdp_flags = flags,
                                   .sxdp_ifindex = ifindex, .sxdp_queue_id = queue,
                                   .sxdp_shared_umem_fd = shared_fd};

    return bind(fd, (struct sockaddr *)&address, sizeof(address)) ? -errno : 0;
}

/* How many packets one sendto() turns into skbs, in copy mode; 32 unless told. */
static int max_tx_budget(int fd, __u32 packets)
{
    return setsockopt(fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &packets, sizeof(packets)) ? -errno : 0;
}

/* Kernels before 5.9 fill in less: the rest stays zero. */
static int read_statistics(int fd, struct xdp_statistics *statistics)
{
    socklen_t size = sizeof(*statistics);

    return getsockopt(fd, SOL_XDP, XDP_STATISTICS, statistics, &size) ? -errno : 0;
}

/* 1, 0 or a negative errno */
static int is_zero_copy(int fd)
{
    struct xdp_options options = {0};
    socklen_t size = sizeof(options);

    if (getsockopt(fd, SOL_XDP, XDP_OPTIONS, &options, &size))
        return -errno;
    return !!(options.flags & XDP_OPTIONS_ZEROCOPY);
}

/* SO_ERROR, which reading clears: ENETDOWN once the interface is gone */
static int socket_error(int fd)
{
    int error = 0;
    socklen_t size = sizeof(error);

    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) ? errno : error;
}
"""


def is_installed() -> bool:
    """pkg-config finds the libraries; what is missing is said on stderr."""
    if shutil.which("pkg-config") is None:
        print("afxdp: not built: pkg-config is not installed", file=sys.stderr)
        return False
    asked = subprocess.run(["pkg-config", "--print-errors", "--exists", *LIBRARIES],
                           capture_output=True, text=True, check=False)
    if asked.returncode:
        print("afxdp: not built, the AF_XDP port will not work (apt install libxdp-dev "
              f"libbpf-dev): {asked.stderr.strip()}", file=sys.stderr)
    return asked.returncode == 0


ffi = FFI()
ffi.cdef(CDEF)
ffi.set_source("afxdp._native", SOURCE, libraries=["xdp", "bpf"],
               extra_compile_args=["-O2", "-Wall", "-Wno-unused-function"])
