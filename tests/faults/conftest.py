"""A run that nobody disturbed, shared by the tests that need one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.harness import Run, overrides, write_prompts
from tests.tiny import tiny_policy


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy of all runs here."""
    return tiny_policy(tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> Path:
    """A run of one iteration that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_prompts(folder / "prompts.jsonl")
    Run(folder, overrides(folder, policy)).finish()
    return folder
