"""A Ray cluster of several nodes on this machine, started as a person starts one: `ray start`, once a node.

Nodes have addresses of loopback, or of network namespaces, which root can make and which can be cut from each other.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.faults.test_loop import free_port

RAY = str(Path(sys.executable).with_name("ray"))
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
STARTED_S = 120.0


@dataclass
class Node:
    """`ray start --block` and what it has started."""

    process: subprocess.Popen[bytes]
    host: str

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
    port: int
    hosts: Sequence[str]
    prefixes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Address -> words that run a command where that address is: `ip netns exec NAME`."""
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        """What RAY_ADDRESS is."""
        return f"{self.hosts[0]}:{self.port}"

    def start(self, host: str, *words: str, cores: int = 1, **environment: str) -> Node:
        """Start a node: the head where there is none yet; words: more options of `ray start`."""
        role = ["--head", f"--port={self.port}", "--include-dashboard=false"] if not self.nodes else []
        role = role or [f"--address={self.address}"]
        command = [*self.prefixes.get(host, ()), RAY, "start", *role, "--block", f"--node-ip-address={host}"]
        command += [f"--num-cpus={cores}", "--object-store-memory=100000000", *words]
        log = (self.folder / f"ray-{len(self.nodes)}.log").open("wb")
        started = {**os.environ, **ENVIRONMENT, **environment}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=started, start_new_session=True)
        self.nodes.append(Node(process, host))
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
        command = [*self.prefixes.get(self.hosts[0], ()), sys.executable, "-c", ask, self.address]
        deadline, environment = time.monotonic() + STARTED_S, {**os.environ, **ENVIRONMENT}
        while True:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if f"alive {count}" in done.stdout:
                return
            assert time.monotonic() < deadline, done.stderr[-2000:]
            time.sleep(1.0)


@contextlib.contextmanager
def cluster(folder: Path, cores: Sequence[int] = (1, 1)) -> Iterator[Cluster]:
    """A head and other nodes with so many cores each, at 127.0.0.1, 127.0.0.2 and so on; all are killed in the end."""
    made = Cluster(folder, free_port(), [f"127.0.0.{i + 1}" for i in range(len(cores))])
    try:
        for host, own in zip(made.hosts, cores, strict=True):
            made.start(host, cores=own)
            if len(made.nodes) == 1:
                made.ready(1)
        made.ready(len(cores))
        yield made
    finally:
        for node in made.nodes:
            node.kill()


@contextlib.contextmanager
def namespaces(folder: Path, count: int = 2) -> Iterator[Cluster]:
    """A cluster whose nodes, a core each, are in network namespaces with a bridge between them; only root can do it."""
    hosts = [f"10.231.7.{i + 1}" for i in range(count)]
    prefixes = {host: ["ip", "netns", "exec", f"sparring-{i}"] for i, host in enumerate(hosts)}
    made = Cluster(folder, 6399, hosts, prefixes)
    try:
        _ip("link", "add", "sparring-br", "type", "bridge")
        _ip("link", "set", "sparring-br", "up")
        for i, host in enumerate(hosts):
            name = f"sparring-{i}"
            _ip("netns", "add", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", name, "master", "sparring-br", "up")
            _ip("-n", name, "address", "add", f"{host}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        for host in hosts:
            made.start(host)
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
