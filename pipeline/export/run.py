"""A run as it stands in the store: its iterations, its configuration, its artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import book
from pipeline.artifact import Artifact, Manifest
from pipeline.errors import DataError
from pipeline.job import Input
from pipeline.report.published import config_of
from pipeline.report.table import Steps, iterations


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, or an arm of one."""

    name: str
    """`myrun`, or `myrun/experiment=sppo`."""
    folder: Path
    store: Path
    config: dict[str, Any]
    pins: dict[str, str]
    steps: dict[int, Steps]
    """iteration -> label -> manifest, of what the store has."""
    planned: dict[int, dict[str, str]]
    """iteration -> label -> fingerprint, made or not."""

    @staticmethod
    def of(runs: Path, name: str) -> Run:
        """Open a run; DataError when there is none or the store has nothing of it."""
        folder, content = book.opened(runs, name)
        store = Path(content["store"])
        found = iterations(folder, store)
        if not found:
            raise DataError(
                f"{store}: nothing of run {name} is there; call this from the folder that `sparring run` was called in."
            )
        config = config_of(folder)
        if not config:
            raise DataError(f"{folder / 'config.yaml'}: cannot be read; the same `sparring run` again writes it.")
        return Run(
            name=name,
            folder=folder,
            store=store,
            config=config,
            pins=content.get("pins", {}),
            steps=found,
            planned={int(t): row for t, row in content.get("planned", {}).items()},
        )

    def manifest(self, t: int, label: str) -> Manifest | None:
        """Return a step's manifest, None where it is not made."""
        return self.steps.get(t, {}).get(label)

    def opened(self, t: int, label: str) -> Input | None:
        """Return a step's artifact, None where it is not made; DataError when files of it are missing."""
        manifest = self.manifest(t, label)
        if manifest is None:
            return None
        artifact = Artifact(self.store, manifest.step, manifest.fingerprint)
        missing = artifact.missing_file(manifest)
        if missing:
            raise DataError(f"{missing}; `sparring run` makes the step again.")
        return artifact.as_input(label, manifest)
