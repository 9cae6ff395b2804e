"""A run whose process is killed at every write to its bucket, before the server does it and after, and run again.

    python -m tests.crash_bucket SCENARIO FOLDER

The server, moto's, is in this process and kills the client, a fork of it. What the dead one left in the bucket must be
readable; then the same run goes to its end, on the same node or on another one with an empty folder, and the bucket
must hold what an undisturbed run leaves. Prints one JSON object, as tests/crash.py does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sparring.pipeline.planning.plan import Plan
from sparring.pipeline.store import remote
from sparring.pipeline.store.manifest import Artifact
from tests import crash_scenarios as scenarios
from tests.crash import child
from tests.object_store import WRITES, Server, serving

BUCKET = "store-of-tests"
OLD, NEW = "e0" * 32, scenarios.OTHER_INPUT


def artifacts(url: str) -> list[Artifact]:
    """The artifacts of the plan, as the bucket has them now."""
    store = remote.opened(url)
    kinds = (("prompts", scenarios.FIRST), ("pairs", scenarios.SECOND), ("train", scenarios.TRAINED))
    return [Artifact(store, kind, fingerprint) for kind, fingerprint in kinds]


def falsehood(url: str) -> str:
    """What claims to be finished and is not whole, '' where nothing does."""
    for artifact in artifacts(url):
        manifest = artifact.manifest()
        if bad := list(artifact.damaged_files(manifest, rehash=True)) if manifest else []:
            return str(bad)
    return ""


def outcome(url: str) -> dict[str, Any]:
    """Contents by logical name, and what else is in the bucket."""
    found: dict[str, Any] = {}
    for artifact in artifacts(url):
        manifest = artifact.manifest()
        if manifest is None:
            return {"unfinished": artifact.kind}
        found[artifact.kind] = [manifest.content, manifest.rows, manifest.summary, manifest.inputs]
        names = {file.path for file in manifest.files} | {"manifest.json"}
        assert artifact.remote
        found[f"{artifact.kind}: left behind"] = sorted({*artifact.remote.objects[artifact.path.name]} - names)
    return found


def run(place: Path, url: str, plan: Plan) -> None:
    """As `sparring run` does it on one node."""
    os.environ["SPARRING_CACHE"] = str(place)
    scenarios.run(place, plan, remote.opened(url))


def explore(successor: bool, folder: Path, server: Server) -> dict[str, Any]:
    """Kill at every write; return {points, wrong}."""
    plans = [scenarios.with_source(OLD), scenarios.with_source(NEW)] if successor else [scenarios.three_steps()]
    *before, act = plans

    def prepared(name: str) -> tuple[Path, str]:
        place, url = folder / name, f"s3://{BUCKET}/{name}"
        for plan in before:
            assert child(partial(run, place, url, plan)) == 0
        return place, url

    def killer(last: int, after: bool) -> Callable[[int, str], str]:
        writes = [0]

        def fault(number: int, method: str) -> str:
            writes[0] += method in WRITES
            counted[0] = writes[0]
            if writes[0] != last or method not in WRITES:
                return ""
            return "killed_after" if after else "killed_before"

        return fault

    counted = [0]
    place, url = prepared("whole")
    with server.failing(killer(0, False)):
        assert child(partial(run, place, url, act)) == 0
    os.environ["SPARRING_CACHE"] = str(folder / "reader")
    wanted, points, wrong = outcome(url), counted[0], {}
    for number in range(1, points + 1):
        for after in (False, True):
            name = f"{number}-{'after' if after else 'before'}"
            place, url = prepared(name)
            with server.failing(killer(number, after)):
                code = child(partial(run, place, url, act), server.watch)
            os.environ["SPARRING_CACHE"] = str(folder / "reader")
            same_node = number % 2 == 0
            if code != -signal.SIGKILL:
                wrong[name] = f"ended with {code}"
            elif why := falsehood(url):
                wrong[name] = f"after the kill: {why}"
            elif child(partial(run, place if same_node else folder / f"{name}-other", url, act)):
                wrong[name] = "the second run failed"
            else:
                found = outcome(url)
                if not same_node:  # nothing tells another node that a finished artifact was not tidied
                    found = {key: wanted[key] if "left behind" in key else value for key, value in found.items()}
                if found != wanted:
                    wrong[name] = f"{found} instead of {wanted}"
    return {"points": points, "wrong": wrong, "early": []}


def main() -> None:
    """Explore one scenario."""
    name, folder = sys.argv[1:]
    with serving() as server:
        os.environ.update(server.environment)
        server.make_bucket(BUCKET)
        print(json.dumps(explore(name == "successor", Path(folder), server)))


if __name__ == "__main__":
    main()
