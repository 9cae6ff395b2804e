"""The nodes of a joined cluster, and which of them may get work.

A node gets work once a task on it has shown that its packages and its code are the driver's, and that it reads and
writes the run's folders. All nodes are checked when the cluster is joined; one that joins later is checked while the
others work. Nothing is checked of a Ray that the driver has started itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from sparring.pipeline.execution import ray_cluster
from sparring.stages.digests import installed
from sparring.stages.errors import ConfigError, first_line
from sparring.stages.step import Places

CHECK_S = 60.0
"""Seconds that a node has to answer: its first worker process takes seconds to start, more where the cores are busy."""
ENDING_S = 10.0
"""Seconds that killed processes have to be gone."""
NODE_ID = "ray.io/node-id"
"""Ray's own label of each node."""

_lock = threading.Lock()
_folders: list[str] = []
_verdicts: dict[str, str | None] = {}
"""Ray's id of a node -> why it gets no work, "" where it may, None while it is checked."""
_hosts: dict[str, str] = {}
"""Ray's id of each node that was alive when they were last listed -> its address."""
_unreported: list[str] = []


def join(folders: Sequence[Path], address: str) -> None:
    """Check every node of the cluster at `address`, which must see `folders`; ConfigError names those that fail."""
    _folders[:] = [str(folder) for folder in folders]
    _verdicts.clear()
    _hosts.clear()
    alive = _alive()
    _hosts.update({name: node["NodeManagerAddress"] for name, node in alive.items()})
    local = sorted(host for host in _hosts.values() if host.startswith("127."))
    if local and len(local) < len(alive):
        raise ConfigError(
            f"the cluster {address} has {len(alive)} nodes, and one of them is known as {local[0]}, where no other can "
            "reach it; start Ray there with --node-ip-address and an address that the others reach."
        )
    _verdicts.update(_check(_hosts))
    if wrong := [f"{_hosts[name]}: {why}" for name, why in _verdicts.items() if why]:
        raise ConfigError(
            f"{len(wrong)} of {len(alive)} nodes of the cluster {address} cannot work for this run: "
            f"{'; '.join(wrong)}. Install the same packages and code on each, and set paths.store and paths.runs to "
            "folders that all of them see; or take these nodes out of the cluster."
        )


def places(message: Callable[[str], None] = lambda text: None) -> Places:
    """Return the nodes that may get work now; `message` gets a line for each that was lost or has joined."""
    alive = _alive()
    if not ray_cluster.joined():
        return Places(nodes={name: node["Resources"] for name, node in alive.items()}, selector={})
    with _lock:
        lost = [host for name, host in _hosts.items() if name not in alive]
        lines = [f"the node {host} of the cluster is gone" for host in lost] + _unreported
        _unreported.clear()
        _hosts.clear()
        _hosts.update({name: node["NodeManagerAddress"] for name, node in alive.items()})
        if new := {name: host for name, host in _hosts.items() if name not in _verdicts}:
            _verdicts.update(dict.fromkeys(new))
            threading.Thread(target=_admit, args=(new,), name="check-nodes", daemon=True).start()
        usable = [name for name in alive if _verdicts[name] == ""]
        refused = [name for name in alive if _verdicts[name]]
    for line in lines:
        message(line)
    if ray_cluster.autoscales():  # a worker that may go to known nodes alone would call for no other
        selector = {NODE_ID: f"!in({','.join(refused)})"} if refused else {}
    else:
        selector = {NODE_ID: f"in({','.join(usable or ['none'])})"}
    return Places(nodes={name: alive[name]["Resources"] for name in usable}, selector=selector)


def host(node: str) -> str:
    """Return a node's address, given Ray's id of it."""
    return _hosts.get(node, node[:8])


def run_on(function: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], timeout_s: float) -> dict[str, Any]:
    """Run a function on nodes at the same time, with the arguments of each; return what it returned there.

    A node that is gone or where it failed has a RayError instead, one that did not answer in time a TimeoutError. On a
    Ray of the driver's own it is called here.
    """
    if not ray_cluster.joined():
        return {node: function(*own) for node, own in arguments.items()}
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task, calls = ray.remote(num_cpus=0, max_retries=0)(function), {}
    for node, own in arguments.items():
        calls[node] = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*own)
    done = ray.wait(list(calls.values()), num_returns=len(calls), timeout=timeout_s)[0] if calls else []
    results: dict[str, Any] = {}
    for node, reference in calls.items():
        try:
            results[node] = ray.get(reference) if reference in done else TimeoutError(f"no answer in {timeout_s:.0f} s")
        except RayError as error:
            results[node] = error
    return results


def family(pids: Sequence[int]) -> list[tuple[int, float]]:
    """Return (pid, time of creation) of those processes of this machine and of all that they have started."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            found += [(one.pid, one.create_time()) for one in [process, *process.children(recursive=True)]]
    return found


def end(processes: Sequence[tuple[int, float]], patience_s: float) -> list[int]:
    """Wait until processes have ended, kill those that have not after patience_s; return those that live even then."""
    left = []
    for pid, created in processes:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            left += [process] if process.create_time() == created else []
    _, left = psutil.wait_procs(left, timeout=patience_s)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return [process.pid for process in psutil.wait_procs(left, timeout=ENDING_S)[1]]


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Return what is not the same of two machines' versions, a phrase each."""
    names = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    return [f"{name} is {theirs.get(name, 'missing')} there, {ours.get(name, 'missing')} here" for name in names]


def versions() -> dict[str, str]:
    """Return the versions of this machine's Python, packages and code; of a CUDA and a CPU build the same."""
    packages = {name.removesuffix("-cpu"): text for name, text in installed(ray_cluster.PACKAGES).items()}
    plain = {name: text.partition("+")[0] for name, text in packages.items()}
    return {"python": platform.python_version(), **plain, "sparring's code": _code()}


def _code() -> str:
    """Return a digest of this project's files."""
    digest = hashlib.sha256()
    for package in ("sparring.pipeline", "sparring.stages", "sparring.conf"):
        spec = find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(root).rglob("*")):
                if path.suffix in (".py", ".yaml"):
                    digest.update(f"{package}/{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def look(folders: Sequence[str], name: str, node: str) -> tuple[dict[str, str], dict[str, str]]:
    """On a node: return its versions, and of each folder why the file `name` is not read or answered there, or ""."""
    seen = {}
    for folder in folders:
        try:
            text = (Path(folder) / name).read_text(encoding="utf-8")
            (Path(folder) / f"{name}.{node}").write_text(text[::-1], encoding="utf-8")
            seen[folder] = ""
        except OSError as error:
            seen[folder] = error.strerror or str(error)
    return versions(), seen


def _alive() -> dict[str, Any]:
    """Return the living nodes of Ray by their ids."""
    import ray

    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def _admit(new: Mapping[str, str]) -> None:
    """Check nodes that have joined, in a thread of its own."""
    found = _check(new)
    with _lock:
        _verdicts.update(found)
        for name, why in found.items():
            _unreported.append(f"the node {new[name]} has joined and gets {f'no work: {why}' if why else 'work'}")


def _check(hosts: Mapping[str, str]) -> dict[str, str]:
    """Return for each of these nodes why it can get no work, "" where it can."""
    name, ours = f".sparring-node-{uuid.uuid4().hex}", versions()
    try:
        for folder in map(Path, _folders):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name, encoding="utf-8")
        answers = run_on(look, {node: (_folders, name, node) for node in hosts}, CHECK_S)
        return {node: _verdict(answer, ours, name, node) for node, answer in answers.items()}
    finally:
        for folder in map(Path, _folders):
            for path in folder.glob(f"{name}*"):
                with contextlib.suppress(OSError):
                    path.unlink()


def _verdict(answer: Any, ours: Mapping[str, str], name: str, node: str) -> str:
    """Return what a node's answer says against it, "" where nothing does."""
    if isinstance(answer, Exception):
        return f"the check failed there: {first_line(answer)}"
    theirs, seen = answer
    faults = differences(ours, theirs)
    for folder, fault in seen.items():
        reply = Path(folder) / f"{name}.{node}"
        if fault:
            faults.append(f"{folder} is not seen, or not written, there ({fault})")
        elif not reply.is_file() or reply.read_text(encoding="utf-8") != name[::-1]:
            faults.append(f"{folder} is another folder there: what it writes is not seen here")
    return ", ".join(faults)
