"""A whole iteration whose store is a bucket, over two nodes that have no file system in common, on a real S3 server.

The nodes are two raylets. The second one has a mount namespace of its own, in which the driver's folders are empty.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.harness import contents, overrides
from tests.faults.test_loop import free_port, sparring, wait_for_port
from tests.object_store import SECRETS, WRITES, Server, serving

URL = "s3://store-of-tests/nightly/store"
SERIAL = {"RAY_AUTH_MODE": "disabled"}
RAY = str(Path(sys.executable).with_name("ray"))
ISOLATED = (
    shutil.which("unshare") is not None
    and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
)


@contextmanager
def nodes(server: Server, place: Path, hidden: Sequence[Path]) -> Iterator[str]:
    """Two raylets with a core each; yields the address. The second sees `hidden` empty."""
    port, started = free_port(), []

    def start(name: str, *words: str, around: tuple[str, ...] = ()) -> None:
        command = [*around, RAY, "start", *words, "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1"]
        environment = {**os.environ, **server.environment, **SERIAL, "SPARRING_CACHE": str(place / name)}
        with (place / f"{name}.log").open("w") as log:
            started.append(
                subprocess.Popen([*command, "--disable-usage-stats"], stdout=log, stderr=log, env=environment)
            )

    try:
        start("driver", "--head", f"--port={port}", "--include-dashboard=false")
        wait_for_port(port)
        empty = " && ".join([*(f"mount -t tmpfs none '{folder}'" for folder in hidden), 'exec "$0" "$@"'])
        start("other", f"--address=127.0.0.1:{port}", around=("unshare", "-m", "sh", "-c", empty))
        yield f"127.0.0.1:{port}"
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(60)


@pytest.mark.slow
@pytest.mark.skipif(not ISOLATED, reason="makes mount namespaces, which needs root")
def test_two_nodes_with_disks_of_their_own(undisturbed: Path, policy: Path, tmp_path: Path) -> None:
    """It gives the bytes of a store on a file system, while requests fail; what is made is used from a third node."""
    caches, folder = tmp_path / "caches", tmp_path / "driver"
    folder.mkdir()
    (caches / "driver").mkdir(parents=True)
    shutil.copytree(policy, folder / "policy")
    shutil.copy(undisturbed / "prompts.jsonl", folder / "prompts.jsonl")
    words = [
        *overrides(folder, folder / "policy", f"paths.store={URL}"),
        "hardware.engines=2",
        "hardware.annotators=2",
    ]

    def fault(number: int, method: str) -> str:
        if number % 10 == 0 and method in WRITES:
            return "broken"
        return {3: "slow_down", 8: "dropped", 16: "lost"}.get(number % 17, "")

    with serving() as server:
        server.make_bucket("store-of-tests")
        ours = {**server.environment, **SERIAL, "SPARRING_CACHE": str(caches / "driver")}
        with nodes(server, caches, [folder, caches / "driver"]) as address, server.failing(fault):
            done = sparring("run", *words, RAY_ADDRESS=address, **ours)
            assert done.returncode == 0, done.stdout + done.stderr
        assert server.failed["broken"] >= 3 and {"slow_down", "dropped", "lost"} < {*server.failed}
        assert contents(folder) == contents(undisturbed)
        other = next((caches / "other" / "stores").iterdir())
        assert list(other.glob("sample-*/part-*.parquet")) and list(other.glob("input-*/config.json"))

        moved = {**ours, "SPARRING_CACHE": str(caches / "third")}
        again = sparring("run", *words, **moved)
        assert again.returncode == 0 and "nothing to do" in again.stdout, again.stdout + again.stderr
        runs = ["--runs", str(folder / "runs")]
        for command in (
            ["verify", "--store", URL],
            ["status", "default", *runs],
            ["report", "default", *runs],
            ["inspect", "default", *runs],
            ["export", "default", "--to", str(tmp_path / "policy"), *runs],
            ["sync", "default", "--to", "tensorboard", *runs],
        ):
            done = sparring(*command, **moved)
            assert done.returncode == 0, (command, done.stdout + done.stderr)
        assert (tmp_path / "policy" / "model.safetensors").is_file()
    for path in (path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()):
        assert not any(secret.encode() in path.read_bytes() for secret in SECRETS.values()), path
