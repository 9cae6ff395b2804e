"""Steps in the driver's own process: an error names the step and the shard, as one of a worker of Ray does."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparring.pipeline.execution import in_process
from sparring.stages.errors import DataError, SparringError
from sparring.stages.step import Job, Part, Shard, StepSpec
from tests.artifacts import as_job
from tests.refusals import refused


class Failing:
    """Does its first shard, and raises the job's error on the second."""

    def __init__(self, job: Job) -> None:
        self.error: Exception = job.settings

    def __call__(self, shard: Shard) -> Part:
        if shard.index:
            raise self.error
        return Part(table=pa.table({"id": ["a"]}), rows_in=1)


def failing_finish(job: Job, tables: Any, records: list[dict[str, Any]]) -> dict[str, Any]:
    raise job.settings


SPEC = StepSpec(kind="pairs", version=1, worker=f"{__name__}:Failing", finish=f"{__name__}:failing_finish")
ERRORS = [
    (ValueError("no such row\nat all"), SparringError, ("ValueError: no such row; ", "scratch/out-*.log")),
    (OSError(errno.EACCES, "Permission denied", "/some/file"), SparringError, ("/some/file", "scratch/out-*.log")),
    (MemoryError(), SparringError, ("MemoryError; ",)),
    (OSError(errno.ENOSPC, "No space left on device"), DataError, ("paths.store",)),
]


@pytest.mark.parametrize(("error", "kind", "names"), ERRORS)
def test_an_error_names_its_step_and_shard(
    tmp_path: Path, error: Exception, kind: type[SparringError], names: tuple[str, ...]
) -> None:
    job = as_job(SPEC, error, [], tmp_path)
    job.out.mkdir()
    job.scratch.mkdir()
    done = in_process.InProcess().map(job, [Shard(index=0), Shard(index=1)], lambda pid: None, lambda text: None)
    assert next(done)[0] == 0
    with refused(kind, str(job.out) if kind is DataError else "out: shard 1 ", names):
        next(done)
    with refused(kind, names):
        in_process.finish(job, [])
    if kind is SparringError:
        assert (job.scratch / "out-errors.log").read_text(encoding="utf-8").count("Traceback") == 2


@pytest.mark.parametrize("error", [DataError("f.jsonl: line 3"), ModuleNotFoundError("no package")])
def test_an_error_that_names_what_to_do_is_left_as_it_is(tmp_path: Path, error: Exception) -> None:
    job = as_job(SPEC, error, [], tmp_path)
    with pytest.raises(type(error)) as caught:
        list(in_process.InProcess().map(job, [Shard(index=1)], lambda pid: None, lambda text: None))
    assert caught.value is error
