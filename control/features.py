"""What this machine and an interface can do: one probe a question, and the mend for each no.

The same probe backs `xdpu features`, the hint of an error and the skip of a test.  A check looks
and never changes anything; it returns (True, False or, where nobody can tell, None; the reason).
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import platform
import re
import resource
import socket
import struct
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from control.probe import Answer, Probe, ProbeResult

AF_XDP = 44
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_IPC_LOCK": 14, "CAP_SYS_ADMIN": 21,
                "CAP_BPF": 39}
MEMLOCK_BYTES = 64 << 20
OLDEST_KERNEL = (5, 18)
BPF_MAP_CREATE, BPF_MAP_TYPE_ARRAY = 0, 2


def collect(iface: str | None = None) -> list[ProbeResult]:
    """Every answer for the machine, then for the interface.  PortError if there is none such."""
    probes = list(SYSTEM)
    if iface is not None:
        from control.interface_features import interface_probes
        probes += interface_probes(iface)
    return [probe.run() for probe in probes]


def find(name: str) -> Probe:
    """One of the machine's probes by name; KeyError for another."""
    return {probe.name: probe for probe in SYSTEM}[name]


def skip_reason(*names: str) -> str | None:
    """Why a test that needs these cannot run here; None when it can."""
    for name in names:
        result = find(name).run()
        if not result.ok:
            return f"needs {result}"
    return None


def to_text(results: Iterable[ProbeResult]) -> str:
    results = list(results)
    width = max((len(r.name) for r in results), default=0)
    lines = []
    for result in results:
        word = {True: "yes", False: "no", None: "?"}[result.ok]
        lines.append(f"{result.name:<{width}}  {word:<3}  {result.reason}")
        if result.hint:
            lines.append(f"{'':<{width}}       fix: {result.hint}")
    return "\n".join(lines)


# ---- the machine ---------------------------------------------------------------------------------

def effective_capabilities() -> int:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.M)
    return int(found[1], 16) if found else 0


def has_capability(*names: str) -> bool:
    """Any of them."""
    effective = effective_capabilities()
    return any(effective >> CAPABILITIES[name] & 1 for name in names)


def _check_root() -> Answer:
    uid = os.geteuid()
    return uid == 0, "effective user is root" if uid == 0 else f"effective user id is {uid}"


def _capability(*names: str) -> Callable[[], Answer]:
    def check() -> Answer:
        ok = has_capability(*names)
        return ok, f"{' or '.join(names)} {'held' if ok else 'missing'}"
    return check


def _check_kernel() -> Answer:
    release = platform.release()
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        return None, f"Linux {release}"
    ok = (int(found[1]), int(found[2])) >= OLDEST_KERNEL
    return ok, f"Linux {release}" + ("" if ok else f", older than {OLDEST_KERNEL[0]}."
                                                   f"{OLDEST_KERNEL[1]}")


def _check_bpf() -> Answer:
    number = {"x86_64": 321, "aarch64": 280, "riscv64": 280}.get(platform.machine())
    if number is None:
        return None, f"system call number unknown on {platform.machine()}"
    libc = ctypes.CDLL(None, use_errno=True)
    request = struct.pack("=IIIII", BPF_MAP_TYPE_ARRAY, 4, 4, 1, 0).ljust(128, b"\0")
    fd = libc.syscall(number, BPF_MAP_CREATE, request, len(request))
    if fd >= 0:
        os.close(fd)
        return True, "maps can be created"
    code = ctypes.get_errno()
    why = {errno.EPERM: "not permitted", errno.ENOSYS: "not in this kernel"}
    return False, why.get(code, os.strerror(code))


def _check_af_xdp() -> Answer:
    try:
        socket.socket(AF_XDP, socket.SOCK_RAW, 0).close()
    except OSError as e:
        if e.errno == errno.EAFNOSUPPORT:
            return False, "not in this kernel"
        return False, f"sockets are refused, {e.strerror}"
    return True, "sockets can be opened"


def _check_libxdp() -> Answer:
    try:
        built = importlib.util.find_spec("afxdp._native")
    except ImportError:
        built = None
    if built is not None and (built.origin or "").endswith(".so"):
        return True, "afxdp extension built"
    missing = [name for name in ("libxdp.so.1", "libbpf.so.1") if not _loads(name)]
    if missing:
        return False, f"{' and '.join(missing)} not found"
    return False, "libxdp and libbpf are installed, the afxdp extension is not built"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _check_tap() -> Answer:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        return False, f"/dev/net/tun, {e.strerror}"
    if not has_capability("CAP_NET_ADMIN"):
        return False, "/dev/net/tun opens, CAP_NET_ADMIN is missing"
    return True, "/dev/net/tun opens"


def _check_hugepages() -> Answer:
    text = Path("/proc/meminfo").read_text()
    sizes = {key: int(value) for key, value in
             re.findall(r"^(HugePages_Total|HugePages_Free|Hugepagesize):\s*(\d+)", text, re.M)}
    if "HugePages_Total" not in sizes:
        return False, "not in this kernel"
    total, free = sizes["HugePages_Total"], sizes["HugePages_Free"]
    return free > 0, f"{free} of {total} free, {sizes.get('Hugepagesize', 0)} KiB each"


def _check_memlock() -> Answer:
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    if soft != resource.RLIM_INFINITY and has_capability("CAP_IPC_LOCK"):
        return True, f"{limit}, does not bind with CAP_IPC_LOCK"
    return soft == resource.RLIM_INFINITY or soft >= MEMLOCK_BYTES, limit


def _check_dpdk() -> Answer:
    try:
        done = subprocess.run(["pkg-config", "--modversion", "libdpdk"], capture_output=True,
                              text=True, timeout=10)
        if done.returncode == 0:
            return True, f"libdpdk {done.stdout.strip()}"
    except (OSError, subprocess.TimeoutExpired):
        return None, "pkg-config is not there to ask"
    return False, "pkg-config knows no libdpdk"


def _check_btf() -> Answer:
    path = Path("/sys/kernel/btf/vmlinux")
    ok = os.access(path, os.R_OK)
    return ok, f"{path} {'is readable' if ok else 'is missing'}"


SYSTEM = (
    Probe("kernel", _check_kernel, "Linux 5.18 brings the fast way for XDP_PASS; older ones "
                                   "work with --tap"),
    Probe("root", _check_root, "run as root, or give the capabilities below"),
    Probe("net_admin", _capability("CAP_NET_ADMIN"), "run as root, or setcap cap_net_admin+ep"),
    Probe("net_raw", _capability("CAP_NET_RAW"), "run as root, or setcap cap_net_raw+ep"),
    Probe("cap_bpf", _capability("CAP_BPF", "CAP_SYS_ADMIN"), "run as root, or setcap cap_bpf+ep"),
    Probe("bpf", _check_bpf, "run as root; in a container allow bpf(2) and CAP_BPF"),
    Probe("af_xdp", _check_af_xdp, "run as root, on a kernel with CONFIG_XDP_SOCKETS"),
    Probe("libxdp", _check_libxdp, "apt install libxdp-dev libbpf-dev, then pip install again"),
    Probe("tap", _check_tap, "run as root; modprobe tun; in a container pass /dev/net/tun in"),
    Probe("hugepages", _check_hugepages, "sysctl vm.nr_hugepages=512, or DPDK with --no-huge"),
    Probe("memlock", _check_memlock, "ulimit -l unlimited, or LimitMEMLOCK=infinity"),
    Probe("dpdk", _check_dpdk, "apt install libdpdk-dev"),
    Probe("btf", _check_btf, "a kernel with CONFIG_DEBUG_INFO_BTF; needed for CO-RE only"),
)
