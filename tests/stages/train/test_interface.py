"""The processes of a training listen on Ray's address of their machine."""

from __future__ import annotations

import os
import socket
import sys

import psutil
import pytest
import ray
import torch.distributed as dist

from sparring.stages.train.launch.interface import advice, use_rays_interface


@pytest.fixture
def free_port(monkeypatch: pytest.MonkeyPatch) -> str:
    """What torch is told of a group of one process; Ray's address of this machine is 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that it is what it was when the test ends
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    rendezvous = sys.modules["torch.distributed.rendezvous"]
    monkeypatch.setattr(rendezvous, "TCPStore", rendezvous.TCPStore)  # what it is before, when the test ends
    return port


def test_store_and_gloo_listen_on_rays_address_alone(free_port: str) -> None:
    before = listening()
    use_rays_interface()
    dist.init_process_group("gloo")
    try:
        dist.barrier()
        ports = listening() - before
        assert len(ports) >= 2 and ("127.0.0.1", int(free_port)) in ports
        assert {address for address, _ in ports} == {"127.0.0.1"}
    finally:
        dist.destroy_process_group()


def test_an_interface_that_is_named_is_kept(free_port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_rays_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    use_rays_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"


@pytest.mark.parametrize(
    ("error", "named"),
    [
        ("RuntimeError: Gloo connectFullMesh failed with [pair.cc:152] timed out connecting", True),
        ("[enforce fail at device.cc:84] ifa != nullptr. Unable to find address for: ib0", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_machines_that_do_not_reach_each_other_are_the_named_cause(error: str, named: bool) -> None:
    assert ("GLOO_SOCKET_IFNAME" in advice(error)) is named


def listening() -> set[tuple[str, int]]:
    """Addresses and ports that this process listens on."""
    return {tuple(one.laddr) for one in psutil.Process().net_connections("inet") if one.status == psutil.CONN_LISTEN}
