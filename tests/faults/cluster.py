"""A Ray cluster of several nodes on this machine, started as a person starts one: `ray start`, once a node.

All nodes have this machine's address, or that of a network namespace, which root can make and cut from the others.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from ray._private import services

from tests.faults.test_loop import free_port

RAY = str(Path(sys.executable).with_name("ray"))
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
STARTED_S = 120.0


@dataclass
class Node:
    """`ray start --block` and what it has started."""

    process: subprocess.Popen[bytes]

    def family(self) -> list[psutil.Process]:
        """Its processes, its workers included."""
        try:
            mine = psutil.Process(self.process.pid)
            return [mine, *mine.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def raylet(self) -> psutil.Process:
        """Its raylet."""
        return next(one for one in self.family() if one.name() == "raylet")

    def kill(self) -> None:
        """End all at once, as a machine does that loses its power."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(60)


@dataclass
class Cluster:
    """A head and the nodes that have joined it."""

    folder: Path
    host: str
    """The head's address."""
    port: int
    prefix: Sequence[str] = ()
    """What runs a command where the head is: `ip netns exec NAME`."""
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        """What RAY_ADDRESS is."""
        return f"{self.host}:{self.port}"

    def start(self, *words: str, cores: int = 1, prefix: Sequence[str] = ()) -> Node:
        """Start a node, the head first; words: more options of `ray start`; prefix: what runs it."""
        number = len(self.nodes)
        head = ["--head", f"--port={self.port}", "--include-dashboard=false"]
        role = [f"--address={self.address}"] if number else head
        command = [*prefix, RAY, "start", *role, "--block", f"--node-name=node-{number}"]
        command += [f"--num-cpus={cores}", "--object-store-memory=100000000", *words]
        log = (self.folder / f"ray-{len(self.nodes)}.log").open("wb")
        started = {**os.environ, **ENVIRONMENT}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=started, start_new_session=True)
        self.nodes.append(Node(process))
        return self.nodes[-1]

    def cut(self, node: int) -> None:
        """Take a node of a namespace off the network."""
        _ip("link", "set", f"sparring-{node}", "down")

    def mend(self, node: int) -> None:
        """Connect it again."""
        _ip("link", "set", f"sparring-{node}", "up")

    def ready(self, count: int) -> None:
        """Wait until so many nodes are alive."""
        ask = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR');"
        ask += "print('alive', sum(node['Alive'] for node in ray.nodes()))"
        command = [*self.prefix, sys.executable, "-c", ask, self.address]
        deadline, environment = time.monotonic() + STARTED_S, {**os.environ, **ENVIRONMENT}
        while True:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if f"alive {count}" in done.stdout:
                return
            assert time.monotonic() < deadline, done.stderr[-2000:]
            time.sleep(1.0)


@contextlib.contextmanager
def cluster(folder: Path, cores: Sequence[int] = (1, 1), words: Sequence[str] = ()) -> Iterator[Cluster]:
    """A head and other nodes with so many cores each; words: more options of `ray start`. All are killed in the end."""
    made = Cluster(folder, services.get_node_ip_address(), free_port())
    try:
        for own in cores:
            made.start(*words, cores=own)
            made.ready(len(made.nodes))
        yield made
    finally:
        for node in made.nodes:
            node.kill()


@contextlib.contextmanager
def namespaces(folder: Path, count: int = 2) -> Iterator[Cluster]:
    """A cluster whose nodes, a core each, are in network namespaces with a bridge between them; only root can do it."""
    inside = [["ip", "netns", "exec", f"sparring-{i}"] for i in range(count)]
    made = Cluster(folder, "10.231.7.1", 6399, inside[0])
    try:
        _ip("link", "add", "sparring-br", "type", "bridge")
        _ip("link", "set", "sparring-br", "up")
        for i in range(count):
            name = f"sparring-{i}"
            _ip("netns", "add", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", name, "master", "sparring-br", "up")
            _ip("-n", name, "address", "add", f"10.231.7.{i + 1}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        for i in range(count):
            made.start(f"--node-ip-address=10.231.7.{i + 1}", prefix=inside[i])
            made.ready(len(made.nodes))
        yield made
    finally:
        for node in made.nodes:
            node.kill()
        for i in range(count):
            _ip("netns", "delete", f"sparring-{i}", check=False)
        _ip("link", "delete", "sparring-br", check=False)


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)
