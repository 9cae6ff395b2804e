"""The collapse panel of an iteration, read from artifacts alone: no engine, no model.

Three kinds of responses are told apart: `played_*` are those that iteration t trained on, which π_{t-1} gave, K a
prompt; `heldout_*` are those of π_t to held-out prompts; `base_*` those of π_0 to the same. A figure that no artifact
has is left out, and so is what an import assumes of its responses, which was not observed.

`kl_previous` and `kl_base` estimate KL(π_t || π_{t-1}) and KL(π_t || π_0) in nats a response on the held-out responses
of π_t, with an interval over prompts (stages/evaluate/bootstrap.py). Where those were not sampled at T = 1, top_p = 1
and min_p = 0 they give no KL: `log_ratio_previous` and `log_ratio_base` are the means of the same log-ratios under that
sampling.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sparring.pipeline.artifact import Artifact, Manifest
from sparring.stages.evaluate.bootstrap import Bootstrap, LogProbs, log_ratios, tempered
from sparring.stages.fields import setting

METRICS = "metrics.jsonl"
"""Of a train artifact: a record of each optimizer step."""
Steps = Mapping[str, Manifest]
"""label -> manifest of one iteration."""
Record = Mapping[str, Any]
FORMS = {"share": ".1%", "tokens": ".1f", "pairs": ".0f", "nats": ".3g"}
"""How figures of a unit are written; others with three digits."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of the panel, and where it came from."""

    name: str
    value: float
    unit: str
    """tokens, share, nats, pairs, cosine, distance, ratio, correlation or win rate."""
    step: str
    """Label of the step: `sample_heldout`."""
    key: str
    """In its summary, or in metrics.jsonl."""

    @property
    def text(self) -> str:
        """The value as it is written."""
        return format(self.value, FORMS.get(self.unit, ".3f"))


@dataclass(frozen=True, kw_only=True)
class Panel:
    """All figures of one iteration, by name."""

    iteration: int
    figures: Mapping[str, Figure]

    def get(self, name: str) -> float | None:
        """Return the value of a figure, None where no artifact has it."""
        return self.figures[name].value if name in self.figures else None


Source = tuple[str, str, str, str]
"""(name, unit, step, key of its summary)."""

SPEECH = (
    ("length_mean", "tokens"),
    ("length_p95", "tokens"),
    ("cap_rate", "share"),
    ("end_of_turn_rate", "share"),
    ("distinct_2", "share"),
)
"""Said of responses, whoever gave them to whatever prompts."""
SPEAKERS = (("played", "sample"), ("heldout", "sample_heldout"), ("base", "sample_base"))
ASSUMED = ("cap_rate", "end_of_turn_rate")
"""What an import does not see: how a response ended."""

SUMMARIES: tuple[Source, ...] = (
    *((f"{who}_{key}", unit, step, key) for who, step in SPEAKERS for key, unit in SPEECH),
    ("played_unique_rate", "share", "sample", "unique_rate"),
    ("similarity", "cosine", "embed", "similarity_mean"),
    ("ties", "share", "score", "tie_rate"),
    ("position_disagreement", "share", "score", "position_disagreement"),
    ("cycle_rate", "share", "pairs", "cycle_rate"),
    ("length_correlation", "correlation", "pairs", "length_correlation"),
    ("shift", "share", "calibrate", "mean_shift"),
    ("flips", "pairs", "calibrate", "flips"),
    ("saturation", "ratio", "train", "saturation"),
    ("clipped_share", "share", "train", "clipped_share"),
    ("rho", "cosine", "train", "rho"),
    ("in_band", "share", "train", "in_band"),
    ("reversed", "share", "train", "reversed"),
    ("rho_negative", "share", "train", "rho_negative"),
    ("probe_h_w", "nats", "train", "probe_h_w"),
    ("probe_h_l", "nats", "train", "probe_h_l"),
    ("probe_pairs", "pairs", "train", "probe_pairs"),
    ("noise", "nats", "train", "noise"),
    ("changed_fraction", "share", "train", "changed_fraction"),
)
LATE = {
    "z_w": "nats",
    "z_l": "nats",
    "h_w": "nats",
    "h_l": "nats",
    "h_w_negative": "share",
    "kl_of_pairs": "nats",
}
"""Means over the second half of the optimizer steps: early on h is 0, and a single step has few pairs."""


def panels(found: Mapping[int, Steps], store: Path) -> list[Panel]:
    """Return the panel of each iteration of a run; found: iteration -> label -> manifest, 0 for what came before."""
    before = found.get(0, {})
    return [
        panel(t, {**before, **found[t]}, list(records_of(found[t], store)), list(_apart(found[t], store)))
        for t in sorted(found)
        if t > 0
    ]


def panel(iteration: int, steps: Steps, trained: Sequence[Record], apart: Sequence[Figure] = ()) -> Panel:
    """Return the figures that an iteration's summaries and its training's records have, and those given."""
    figures = [*_summarised(steps), *apart, *_compared(steps), *_trained(trained)]
    return Panel(iteration=iteration, figures={figure.name: figure for figure in figures})


def records_of(steps: Steps, store: Path) -> Iterator[Record]:
    """Yield the record of each optimizer step of the iteration's training, bytes verified."""
    train = steps.get("train")
    if train is None or all(file.name != METRICS for file in train.files):
        return
    opened = Artifact(store, train.step, train.fingerprint).as_input("train", train)
    with opened.file(METRICS).open(encoding="utf-8") as lines:
        yield from (record for line in lines if "step" in (record := json.loads(line)))  # the last one is the probe


def _summarised(steps: Steps) -> Iterator[Figure]:
    for name, unit, step, key in SUMMARIES:
        manifest = steps.get(step)
        value = manifest.summary.get(key) if manifest else None
        if manifest and value is not None and not (manifest.imported and key in ASSUMED):
            yield Figure(name=name, value=float(value), unit=unit, step=step, key=key)


def _apart(steps: Steps, store: Path) -> Iterator[Figure]:
    """Yield how far π_t is from the policies that its held-out responses were scored under as well."""
    names = ("own", "previous", "base")
    scored = {name: steps[label] for name in names if (label := f"logprobs_{name}") in steps}
    there = [name for name, manifest in scored.items() if manifest.summary.get("mean_logprob") is not None]
    if "own" not in there:
        return
    own, *others = (_logprobs(scored[name], store) for name in there)
    identity = steps["evaluate"].identity if "evaluate" in steps else {}
    settings = Bootstrap(
        resamples=setting(identity, "evaluate.resamples", 2000),
        confidence=setting(identity, "evaluate.confidence", 0.95),
        seed=setting(identity, "seed", 0),
    )
    heldout = steps.get("sample_heldout")
    kind = "log_ratio" if heldout and tempered(heldout.identity.get("sampler", heldout.identity)) else "kl"
    for other, one in zip(there[1:], log_ratios(own, others, settings), strict=True):
        if one.n:
            place = f"logprob of logprobs_own minus that of logprobs_{other}, mean over responses"
            for tail, value in (("", one.mean), ("_low", one.low), ("_high", one.high)):
                name = f"{kind}_{other}{tail}"
                yield Figure(name=name, value=value, unit="nats", step=f"logprobs_{other}", key=place)


def _logprobs(manifest: Manifest, store: Path) -> LogProbs:
    opened = Artifact(store, manifest.step, manifest.fingerprint).as_input("logprobs", manifest)
    tables = (opened.table(part, ["id", "response", "logprob"]) for part in range(opened.n_parts))
    return {(row["id"], row["response"]): row["logprob"] for table in tables for row in table.to_pylist()}


def _compared(steps: Steps) -> Iterator[Figure]:
    """Yield `oracle_base`, `oracle_base_low`, `oracle_base_high` and their like: held-out win rates of π_t."""
    for row in steps["evaluate"].summary.get("comparisons", ()) if "evaluate" in steps else ():
        for key, tail in (("win_rate", ""), ("low", "_low"), ("high", "_high")):
            if row[key] is not None:
                name, place = f"{row['judge']}_{row['opponent']}{tail}", f"{key} of {row['judge']} vs {row['opponent']}"
                yield Figure(name=name, value=row[key], unit="win rate", step="evaluate", key=place)


def _trained(trained: Sequence[Record]) -> Iterator[Figure]:
    if not trained:
        return
    late = trained[len(trained) // 2 :]
    for name, unit in LATE.items():
        if all(name in record for record in late):
            yield _recorded(name, fmean(record[name] for record in late), unit, f"{name}, second half of the steps")
    if "distance" in trained[0]:  # before the first step: of pairs no training has seen
        yield _recorded("distance_new", trained[0]["distance"], "distance", "distance, first step")
    ratios = [math.log(record["r_star"]) for record in trained if "r_star" in record]
    if ratios:
        yield _recorded("r_star", math.exp(fmean(ratios)), "ratio", "r_star, geometric mean of the steps")


def _recorded(name: str, value: float, unit: str, key: str) -> Figure:
    return Figure(name=name, value=float(value), unit=unit, step="train", key=f"{METRICS}: {key}")
