"""A finished run made up of manifests, with a tiny policy as what every iteration published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparring.pipeline import config
from sparring.pipeline.runs import run_record
from sparring.pipeline.sources import EMBEDDED_JUDGES
from sparring.pipeline.store.files import files_below
from sparring.pipeline.store.manifest import Artifact, Manifest, publish
from sparring.stages.annotate.score import _card
from sparring.stages.fingerprint import digest
from tests.artifacts import samples_table

TRAIN: dict[str, Any] = {
    "objective": {"name": "sppo", "beta": 0.001},
    "repulsion": {"name": "hinge", "weight": 0.002},
    "trainer": {"optimizer": "rmsprop", "lr": 1e-5, "weight_decay": 0.01, "global_batch": 8},
    "seed": 0,
}
SUMMARY = {
    "steps": 8,
    "tokens": 19429,
    "probe_h_w": 30.5,
    "probe_h_l": -87.2,
    "noise": 5e-6,
    "changed_fraction": 0.99,
    "in_band": 0.5,
    "mean_change": 1e-4,
}
CARD = _card(EMBEDDED_JUDGES / "lexical")
Rate = tuple[float, float, float] | None
"""(win rate, low, high) of the second judge against the base."""


def comparisons(second: Rate) -> list[dict[str, Any]]:
    """Return an evaluation's rows; the oracle is content with everything."""
    rows = []
    for opponent in ("previous", "base"):
        for judge, rate in (("oracle", (0.6, 0.55, 0.65)), ("second", second)):
            value, low, high = rate or (None, None, None)
            informative = low is not None and high is not None and not low <= 0.5 <= high
            rows.append(
                {
                    "opponent": opponent,
                    "judge": judge,
                    "win_rate": value,
                    "low": low,
                    "high": high,
                    "n": 64,
                    "dropped": 0,
                    "informative": informative,
                }
            )
    return rows


@dataclass
class Fabricated:
    """Writes a run under `folder`: store/, runs/<name>."""

    folder: Path
    name: str = "mine"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @classmethod
    def of_third_training(cls, folder: Path, *rates: Rate) -> Fabricated:
        """Return a run whose iterations 1, 2 are evaluated at these rates, and whose third one trains as ababab…"""
        policy = folder / "policy"
        policy.mkdir()
        (policy / "config.json").write_text("{}")
        made = cls(folder)
        made.begin(planned={(3, "train"): "ab" * 32})
        for t, rate in enumerate(rates, start=1):
            made.train(t, policy)
            made.evaluate(t, rate)
        return made

    def begin(self, overrides: Sequence[str] = (), planned: Mapping[run_record.Key, str] | None = None) -> None:
        """Write the run's configuration."""
        text = config.render(config.load(["hardware=cpu", *overrides]))
        run_record.begin(self.runs / self.name, planned or {}, text, list(overrides), str(self.store), {})

    def step(
        self, t: int, label: str, summary: Mapping[str, Any], files: Mapping[str, Path] | None = None, **fields: Any
    ) -> Manifest:
        """Publish an artifact of made-up content and record it; files: logical name -> what is copied."""
        kind = label.partition("_")[0]
        artifact = Artifact(self.store, kind, digest({"run": self.name, "t": t, "label": label}))
        artifact.path.mkdir(parents=True)
        placed = {}
        for logical, source in (files or {}).items():
            path = artifact.path / logical.replace("model/", "model.1f/")
            path.parent.mkdir(exist_ok=True)
            placed[logical] = Path(shutil.copyfile(source, path))
        plain: dict[str, Any] = {
            "identity": {},
            "inputs": {"policy": {"name": "8" * 64, "digest": "8" * 64}},
            "rows": {"in": 64, "out": 61, "dropped": {"tie": 3}},
            "stats": {"tokens": 5000.0},
            "made_with": {"code": {"sparring": "0.1.0"}, "packages": {"torch": "2"}, "created": "2026-01-01T00:00:00"},
        }
        manifest = Manifest(
            fingerprint=artifact.fingerprint,
            step=kind,
            version=1,
            files=files_below(artifact.path, placed),
            summary=dict(summary),
            seconds=20.0,
            attempts=["1f"],
            **{**plain, **fields},
        )
        publish(artifact, manifest)
        run_record.note(self.runs / self.name, self.store, (t, label), artifact.path.name, manifest)
        return manifest

    def train(self, t: int, policy: Path) -> None:
        """Publish `policy` as what iteration t trained."""
        metrics = self.folder / "metrics.jsonl"
        figures = {"of": 8, "clipped": True, "in_band": 0.25}
        records: list[dict[str, Any]] = [{"step": i, "loss": 9.0 / i, **figures} for i in range(1, 9)]
        metrics.write_text("".join(json.dumps(record) + "\n" for record in [*records, {"probe": []}]))
        files = {f"model/{path.name}": path for path in policy.iterdir()}
        self.step(t, "train", SUMMARY, {**files, "metrics.jsonl": metrics}, identity=TRAIN)

    def evaluate(self, t: int, second: Rate) -> None:
        """Publish an evaluation and the second judge's score."""
        fields = {"prompts": 64, "resamples": 2000, "confidence": 0.95, "alarm": False, "alarms": []}
        self.step(t, "evaluate", {**fields, "comparisons": comparisons(second)})
        self.step(t, "score_second_base", {"oracle": "lexical", "card": CARD}, identity={"oracle": {"kind": "lexical"}})

    def best_of(self, t: int, n: int, second: tuple[float, float, float]) -> None:
        """Publish what the oracle's best of n responses are worth against the base by the second judge."""
        self.step(t, "best", {"n": n, "length_mean": 80.0})
        value, low, high = second
        row = {"judge": "second", "opponent": "base", "win_rate": value, "low": low, "high": high, "informative": True}
        self.step(t, "evaluate_best", {"comparisons": [row], "alarms": []})

    def data(self, t: int, texts: Mapping[str, Sequence[str]]) -> None:
        """Publish samples of these responses, and pairs."""
        tables = {
            "sample": samples_table(dict(texts)),
            "pairs": pa.table({"id": list(texts), "chosen": [0] * len(texts)}),
        }
        for label, table in tables.items():
            path = self.folder / f"{label}.parquet"
            pq.write_table(table, path)
            self.step(t, label, {"prompts": len(texts), "responses": 2 * len(texts)}, {"part-00000.parquet": path})
