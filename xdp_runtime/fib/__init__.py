"""What the host's network stack would do with a packet: bpf_fib_lookup and bpf_check_mtu.

| file | what |
|---|---|
| `host.py` | interfaces, rules, routes, neighbours as frozen dataclasses |
| `model.py` `source.py` | the obvious lookup over them: what the interpreter runs |
| `layout.py` | the same tables as bytes |
| `tables.py` | shared memory that holds them, swapped as a whole |
| `templates.py` `templates6.py` | the lookup in that memory: what is compiled |

Who fills the tables is `dataplane/fibmirror.py`.  Source of every rule here: net/core/filter.c,
net/ipv4/fib_*.c, net/ipv6/route.c, ip6_fib.c, fib6_rules.c, addrconf.c of Linux 6.18.
"""

from __future__ import annotations

EXTERNAL = "fib"  # the symbol by which compiled code finds the tables
