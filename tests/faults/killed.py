"""`sparring`, with a kill -9 of itself or of a worker at a moment of its own events: a step is never too quick for it.

    python -m tests.faults.killed '{"kind": "score", "target": "driver", "when": "between", "after_s": 0,
                                    "record": "killed.json"}' run OVERRIDES

`during` a step is `after_s` seconds after it began (its worker, where that is the target), and at the latest when its
first shard is done (a worker) or its manifest is to be published (the driver). `record` gets the pids of the killed
process and of everything that the driver had started.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

from sparring.pipeline import cli
from sparring.pipeline.execution import executor
from sparring.pipeline.execution.events import Events


class Killer:
    """Kills once."""

    def __init__(self, kind: str, target: str, when: str, after_s: float, record: str) -> None:
        self.kind, self.target, self.when, self.after_s, self.record = kind, target, when, after_s, Path(record)
        self.worker = 0
        self._lock = threading.Lock()

    def strike(self) -> None:
        """Kill, unless it was done."""
        with self._lock:
            if self.record.exists():
                return
            pid = os.getpid() if self.target == "driver" else self.worker
            started = [process.pid for process in psutil.Process().children(recursive=True) if not is_agent(process)]
            self.record.write_text(json.dumps({"pid": pid, "started": started}), encoding="utf-8")
            os.kill(pid, signal.SIGKILL)

    def look(self, event: str, fields: dict[str, Any]) -> None:
        """Strike at the right moment."""
        if fields.get("kind") != self.kind:
            return
        if event == "worker" and not self.worker:
            self.worker = fields["pid"]
        progress = event in ("shard", "train_step")
        if self.when == "between":
            if progress and fields["done"] < fields["of"]:
                self.strike()
        elif event == ("worker" if self.target == "worker" else "step_started"):
            timer = threading.Timer(self.after_s, self.strike)
            timer.daemon = True
            timer.start()
        elif progress and self.target == "worker":
            self.strike()


def is_agent(process: psutil.Process) -> bool:
    """Whether it is one of Ray's two agents of a few MB, which notice the end of their raylet a minute later."""
    try:
        return "Agent" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def main() -> int:
    """Run the command line that follows the moment."""
    killer = Killer(**json.loads(sys.argv[1]))
    show, publish = Events.__call__, executor.publish

    def shown(self: Events, event: str, **fields: Any) -> None:
        show(self, event, **fields)
        killer.look(event, fields)

    def published(artifact: Any, *others: Any) -> Any:
        if artifact.kind == killer.kind and killer.target == "driver":
            killer.strike()
        return publish(artifact, *others)

    Events.__call__, executor.publish = shown, published  # type: ignore[method-assign, assignment]
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
