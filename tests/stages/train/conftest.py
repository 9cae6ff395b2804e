"""Ray, the inputs of a small training, and one of its trainings that nobody disturbed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from sparring.stages.step import Input
from sparring.stages.train.steps.train import Trained, run
from tests.stages.train.rig import PAIRS, train_inputs, train_job
from tests.tiny import tiny_policy


@pytest.fixture(scope="package")
def ray_started() -> Iterator[None]:
    import ray

    os.environ["OMP_NUM_THREADS"] = "1"
    ray.init(
        address="local",  # never a cluster that happens to run here
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=100 * 2**20,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="package")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Input]:
    folder = tmp_path_factory.mktemp("inputs")
    return train_inputs(folder, tiny_policy(folder / "policy"), pairs=PAIRS)


@pytest.fixture(scope="package")
def undisturbed(ray_started: None, inputs: list[Input], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return run(train_job(tmp_path_factory.mktemp("undisturbed"), inputs), lambda event: None)
