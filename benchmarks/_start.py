"""Where the start of an engine goes: `Sampler` of the step, from an interpreter that does not run yet to a token.

_start.py JOB SPAWNED     JOB: a pickled Job; SPAWNED: time.time() when this process was asked for;
                          the last line of stdout is {what: seconds}
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import sys
import time
from importlib.abc import MetaPathFinder
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks._process import answer_of, timed
from sparring.stages.step import Input, Job


def measure(arguments: argparse.Namespace, folder: Path) -> list[Any]:
    """Start an engine `rounds` times and return the medians as rows."""
    from benchmarks import _jobs
    from benchmarks._table import Row
    from sparring.pipeline.store.files import external
    from sparring.stages.sample.config import SAMPLE

    policy = external("policy", _jobs.policy_of(arguments, folder))
    prompts = _jobs.prompts_artifact(folder / "start", [_jobs.rendered(_jobs.short_texts(1), policy.root)])
    chosen = _jobs.settings(512, k=2, max_tokens=1, shard_rows=1)
    job = _jobs.step_job(SAMPLE, chosen, [prompts, policy], folder / "start-out")
    (folder / "job").write_bytes(pickle.dumps(job))
    found = [
        answer_of("_start", [str(folder / "job"), str(time.time())], folder / f"start-{number}.log")
        for number in range(arguments.rounds)
    ]
    return [Row("engine start", what, statistics.median(one[what] for one in found), "s") for what in found[0]]


class Noticed(MetaPathFinder):
    """Finds nothing; `at` is when vLLM was first asked for."""

    at = 0.0

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        """Note the time."""
        if name == "vllm":
            self.at = self.at or time.time()


def main(path: str, spawned: str) -> None:
    """Start an engine as an actor does: imports ahead of the step, then the step's worker, then a shard."""
    job: Job = pickle.loads(Path(path).read_bytes())
    marks = [float(spawned), time.time()]
    sys.meta_path.insert(0, noticed := Noticed())
    from sparring.stages.sample.stage import Sampler, prepare, shards

    prepare(job)
    marks += [noticed.at, time.time()]
    parts: dict[str, float] = {}
    _watch(parts)
    sampler = Sampler(job)
    marks.append(time.time())
    sampler(shards(job)[0])
    marks.append(time.time())
    spans = [after - before for before, after in pairwise(marks)]
    found = {
        "interpreter": spans[0],
        "import torch": spans[1],
        "import vLLM": spans[2],
        "verify the policy's bytes": parts["folder"],
        "tokenizer and chat template": parts["load_chat"],
        "weights": parts["load_model"],
        "key-value cache": parts["_initialize_kv_caches"],
        "engine, the rest": spans[3] - sum(parts.values()),
        "first token": spans[4],
        "all": marks[-1] - marks[0],
    }
    print(json.dumps(found))


def _watch(parts: dict[str, float]) -> None:
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader
    from vllm.v1.engine.core import EngineCore

    from sparring.stages import chat

    timed(Input, "folder", parts)
    timed(chat, "load_chat", parts)
    timed(BaseModelLoader, "load_model", parts)
    timed(EngineCore, "_initialize_kv_caches", parts)


if __name__ == "__main__":
    main(*sys.argv[1:])
