"""Where the processes of a training listen for each other: on the address by which Ray knows their machine alone.

By themselves, Gloo takes the address of the host's name, which often is 127.0.0.1, and torch's store of addresses
listens on all interfaces, where it asks nobody for a token.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from typing import Any

import psutil
import ray
from torch.distributed import TCPStore

UNREACHED = re.compile(r"connectFullMesh|Unable to find address for|no socket interface found|ncclSystemError")
"""What Gloo and NCCL say when processes do not reach each other, or an interface is not there."""


def advice(error: str) -> str:
    """Return what to do about an error of processes that do not reach each other, '' for any other."""
    if not UNREACHED.search(error):
        return ""
    named = {name: os.environ[name] for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name in os.environ}
    return (
        f" The machines do not reach each other on this network interface ({named or 'by which Ray reaches them'}): "
        "open the network between them, or start Ray on each with GLOO_SOCKET_IFNAME=NAME (on GPUs "
        "NCCL_SOCKET_IFNAME=NAME), a name that `ip -brief address` lists there."
    )


def use_rays_interface() -> None:
    """Prepare this process for torch's process group; GLOO_SOCKET_IFNAME, where it is set, is kept."""
    address = ray.util.get_node_ip_address()
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    rendezvous: Any = sys.modules["torch.distributed.rendezvous"]  # torch.distributed.rendezvous is a function
    rendezvous.TCPStore = _store


def _store(host_name: str, port: int, world_size: int | None = None, is_master: bool = False, **more: Any) -> TCPStore:
    """Return torch's store; its server listens on `host_name`."""
    if is_master:
        family = socket.AF_INET6 if ":" in host_name else socket.AF_INET
        server = socket.create_server((host_name, port), family=family)
        more |= {"multi_tenant": False, "master_listen_fd": server.detach()}
    return TCPStore(host_name, port, world_size, is_master, **more)
