"""Builds afxdp._native: libxdp's calls that make an AF_XDP socket, for cffi in API mode.

Only what sets a socket up and takes it down is here.  The rings are driven by compiled code
(rings.py) from the addresses that xsk_ring_prod and xsk_ring_cons hold.
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

struct xsk_ring_prod {
    __u32 cached_prod; __u32 cached_cons; __u32 mask; __u32 size;
    __u32 *producer; __u32 *consumer; void *ring; __u32 *flags;
    ...;
};
struct xsk_ring_cons {
    __u32 cached_prod; __u32 cached_cons; __u32 mask; __u32 size;
    __u32 *producer; __u32 *consumer; void *ring; __u32 *flags;
    ...;
};
struct xsk_umem;
struct xsk_socket;
struct xsk_umem_config {
    __u32 fill_size; __u32 comp_size; __u32 frame_size; __u32 frame_headroom; __u32 flags;
    ...;
};
struct xsk_socket_config {
    __u32 rx_size; __u32 tx_size; __u32 libxdp_flags; __u32 xdp_flags; __u16 bind_flags;
    ...;
};
struct xdp_statistics {
    __u64 rx_dropped; __u64 rx_invalid_descs; __u64 tx_invalid_descs;
    __u64 rx_ring_full; __u64 rx_fill_ring_empty_descs; __u64 tx_ring_empty_descs;
    ...;
};

#define XDP_COPY ...
#define XDP_ZEROCOPY ...
#define XDP_USE_NEED_WAKEUP ...
#define XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD ...

int xsk_umem__create(struct xsk_umem **umem, void *umem_area, __u64 size,
                     struct xsk_ring_prod *fill, struct xsk_ring_cons *comp,
                     const struct xsk_umem_config *config);
int xsk_socket__create(struct xsk_socket **xsk, const char *ifname, __u32 queue_id,
                       struct xsk_umem *umem, struct xsk_ring_cons *rx,
                       struct xsk_ring_prod *tx, const struct xsk_socket_config *config);
int xsk_umem__delete(struct xsk_umem *umem);
void xsk_socket__delete(struct xsk_socket *xsk);
int xsk_socket__fd(const struct xsk_socket *xsk);
int bpf_xdp_query_id(int ifindex, int flags, __u32 *prog_id);

void be_quiet(void);
int max_tx_budget(int fd, __u32 packets);
int read_statistics(int fd, struct xdp_statistics *statistics);
int is_zero_copy(int fd);
int socket_error(int fd);
"""

SOURCE = """
#include <errno.h>
#include <sys/socket.h>
#include <linux/if_xdp.h>
#include <bpf/libbpf.h>
#include <xdp/libxdp.h>
#include <xdp/xsk.h>

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
