"""The collapse panel of an iteration, read from artifacts alone: no engine, no model.

There are three kinds of responses: `played_*` are those that iteration t trained on, which π_{t-1} gave, K a
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
from typing import Any, NamedTuple

from sparring.pipeline.store.manifest import Artifact, Manifest
from sparring.stages.evaluate.bootstrap import Bootstrap, LogProbs, log_ratios, tempered

METRICS = "metrics.jsonl"
"""Of a train artifact: a record of each optimizer step."""
Steps = Mapping[str, Manifest]
"""label -> manifest of one iteration."""
Record = Mapping[str, Any]
FORMS = {"share": ".1%", "tokens": ".1f", "pairs": ".0f", "nats": ".3g"}
"""How measurements of a unit are written; others with three digits."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number of the panel, and where it was read."""

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
    """All measurements of one iteration, by name."""

    iteration: int
    figures: Mapping[str, Measurement]

    def get(self, name: str) -> float | None:
        """Return the value of a figure, None where no artifact has it."""
        return self.figures[name].value if name in self.figures else None


class Source(NamedTuple):
    """A measurement, what it means, and where it is read: a step and the key of its summary."""

    name: str
    unit: str
    meaning: str
    step: str = ""
    """METRICS: the mean over the second half of the optimizer steps: early on h is 0, and one step has few pairs."""
    key: str = ""


def _responses(who: str, step: str) -> tuple[Source, ...]:
    """Return what is measured of responses, whoever gave them to whatever prompts."""
    return (
        Source(f"{who}_length_mean", "tokens", "tokens, mean", step, "length_mean"),
        Source(f"{who}_length_p95", "tokens", "tokens, p95", step, "length_p95"),
        Source(f"{who}_cap_rate", "share", "cut at sampler.max_tokens", step, "cap_rate"),
        Source(f"{who}_end_of_turn_rate", "share", "ended by themselves", step, "end_of_turn_rate"),
        Source(f"{who}_distinct_2", "share", "distinct-2 (different / all pairs of tokens)", step, "distinct_2"),
    )


ASSUMED = ("cap_rate", "end_of_turn_rate")
"""What an import does not see: how a response ended."""
UNDER = "mean under the sampling distribution: no KL"
GROUPS: Mapping[str, tuple[Source, ...]] = {
    "responses trained on, by the policy before": (
        *_responses("played", "sample"),
        Source("played_unique_rate", "share", "different texts of K", "sample", "unique_rate"),
        Source("similarity", "cosine", "similarity of two of K, mean", "embed", "similarity_mean"),
    ),
    "held-out responses": (
        *_responses("heldout", "sample_heldout"),
        Source("kl_previous", "nats", "KL to the policy before, an estimate: may be negative"),
        Source("kl_base", "nats", "KL to the base, an estimate: may be negative"),
        Source("log_ratio_previous", "nats", f"log-ratio to the policy before, {UNDER}"),
        Source("log_ratio_base", "nats", f"log-ratio to the base, {UNDER}"),
    ),
    "held-out responses of the base": _responses("base", "sample_base"),
    "judgement": (
        Source("ties", "share", "the oracle has no preference", "score", "tie_rate"),
        Source("position_disagreement", "share", "its winner changes with the order", "score", "position_disagreement"),
        Source(
            "cycle_rate",
            "share",
            "triples that beat each other in a circle, by the sign of P alone",
            "pairs",
            "cycle_rate",
        ),
        Source("length_correlation", "correlation", "win rate ~ length, correlation", "pairs", "length_correlation"),
        Source("shift", "share", "|P̃−P| by the gate, mean", "calibrate", "mean_shift"),
        Source("flips", "pairs", "pairs turned by the gate", "calibrate", "flips"),
    ),
    "held-out win rates": (
        Source("oracle_previous", "win rate", "oracle, against the policy before"),
        Source("oracle_base", "win rate", "oracle, against the base"),
        Source("second_previous", "win rate", "second judge, against the policy before"),
        Source("second_base", "win rate", "second judge, against the base"),
    ),
    "training; late: mean over the second half of the steps, each of its own batch before the step": (
        Source("z_w", "nats", "log-prob z of chosen, late", METRICS),
        Source("z_l", "nats", "log-prob z of rejected, late", METRICS),
        Source("h_w", "nats", "h of chosen: change of z, late", METRICS),
        Source("h_l", "nats", "h of rejected, late", METRICS),
        Source("h_w_negative", "share", "chosen that lost probability, late", METRICS),
        Source("kl_of_pairs", "nats", "−h of chosen and rejected, mean, late", METRICS),
        Source("probe_h_w", "nats", "h of chosen after training ({pairs})", "train", "probe_h_w"),
        Source("probe_h_l", "nats", "h of rejected after training ({pairs})", "train", "probe_h_l"),
        Source("probe_pairs", "pairs", "pairs that h after training is of, drawn by seed", "train", "probe_pairs"),
        Source("noise", "nats", "|h| before training: noise (8 pairs at most)", "train", "noise"),
        Source("changed_fraction", "share", "parameters changed, by any amount", "train", "changed_fraction"),
        Source(
            "saturation", "ratio", "saturation of the last batch: 0 unmoved, 1 at the target", "train", "saturation"
        ),
        Source("clipped_share", "share", "steps clipped", "train", "clipped_share"),
    ),
    "band, measured on the output head at some steps": (
        Source("rho", "cosine", "ρ: cosine of both gradients of the head", "train", "rho"),
        Source("r_star", "ratio", "r*: norm of the head's gradient, rejected / chosen"),
        Source("in_band", "share", "pairs in the band, measured on the output head", "train", "in_band"),
        Source(
            "rho_negative", "share", "pairs with ρ ≤ 0 there: any ratio keeps the winner up", "train", "rho_negative"
        ),
        Source(
            "reversed",
            "share",
            "pairs reversed: the objective lowers the winner or raises the loser",
            "train",
            "reversed",
        ),
    ),
    "states of pairs that no training has seen": (
        Source("distance_new", "distance", "‖u_w−u_l‖ of the first batch, before training"),
    ),
}
"""Title of a group -> its measurements. Those without a step are computed below."""
SOURCES = {source.name: source for sources in GROUPS.values() for source in sources}


def panels(steps: Mapping[int, Steps], store: Path) -> list[Panel]:
    """Return the panel of each iteration of a run; steps: iteration -> label -> manifest, 0: before."""
    before = steps.get(0, {})
    return [
        panel(t, {**before, **steps[t]}, list(records_of(steps[t], store)), list(_divergences(steps[t], store)))
        for t in sorted(steps)
        if t > 0
    ]


def panel(iteration: int, steps: Steps, records: Sequence[Record], more: Sequence[Measurement] = ()) -> Panel:
    """Return the measurements of an iteration: those of its summaries and of its training's records, and `more`."""
    measured = []
    for source in SOURCES.values():
        manifest = steps.get(source.step)
        value = manifest.summary.get(source.key) if manifest else None
        if manifest and value is not None and not (manifest.imported and source.key in ASSUMED):
            measured.append(_measured(source.name, float(value), source.step, source.key))
    measured += [*more, *_win_rates(steps), *_training(records)]
    return Panel(iteration=iteration, figures={one.name: one for one in measured})


def _measured(name: str, value: float, step: str, key: str, end: str = "") -> Measurement:
    """Return the measurement `name`, or an end of its interval."""
    return Measurement(name=f"{name}{end}", value=value, unit=SOURCES[name].unit, step=step, key=key)


def records_of(steps: Steps, store: Path) -> Iterator[Record]:
    """Yield the record of each optimizer step of the iteration's training, bytes verified."""
    train = steps.get("train")
    if train is None or all(file.name != METRICS for file in train.files):
        return
    opened = Artifact(store, train.step, train.fingerprint).as_input("train", train)
    with opened.file(METRICS).open(encoding="utf-8") as lines:
        yield from (record for line in lines if "step" in (record := json.loads(line)))  # the last one is the probe


def _divergences(steps: Steps, store: Path) -> Iterator[Measurement]:
    """Yield the KL, or the log-ratio, of π_t to each other policy that its held-out responses were scored under."""
    names = ("own", "previous", "base")
    made = {name: steps[label] for name in names if (label := f"logprobs_{name}") in steps}
    scored = {name: manifest for name, manifest in made.items() if manifest.summary.get("mean_logprob") is not None}
    if "own" not in scored:
        return
    own, *others = (_logprobs(manifest, store) for manifest in scored.values())
    evaluate, heldout = steps.get("evaluate"), steps.get("sample_heldout")
    bootstrap: dict[str, Any] = {"resamples": 2000, "confidence": 0.95, "seed": 0}
    if evaluate:
        bootstrap = {name: evaluate.setting(f"evaluate.{name}", value) for name, value in bootstrap.items()}
    settings = Bootstrap(**bootstrap)
    sampling = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0}
    if heldout:
        sampling = {name: heldout.setting(f"sampler.{name}", value) for name, value in sampling.items()}
    kind = "log_ratio" if tempered(sampling) else "kl"
    for other, one in zip(list(scored)[1:], log_ratios(own, others, settings), strict=True):
        key = f"logprob of logprobs_own minus that of logprobs_{other}, mean over responses"
        for end, value in (("", one.mean), ("_low", one.low), ("_high", one.high)) if one.n else ():
            yield _measured(f"{kind}_{other}", value, f"logprobs_{other}", key, end)


def _logprobs(manifest: Manifest, store: Path) -> LogProbs:
    opened = Artifact(store, manifest.step, manifest.fingerprint).as_input("logprobs", manifest)
    tables = (opened.table(part, ["id", "response", "logprob"]) for part in range(opened.n_parts))
    return {(row["id"], row["response"]): row["logprob"] for table in tables for row in table.to_pylist()}


def _win_rates(steps: Steps) -> Iterator[Measurement]:
    """Yield `oracle_base`, `oracle_base_low`, `oracle_base_high` and their like: held-out win rates of π_t."""
    for row in steps["evaluate"].summary.get("comparisons", ()) if "evaluate" in steps else ():
        for key, end in (("win_rate", ""), ("low", "_low"), ("high", "_high")):
            if row[key] is not None:
                judge, opponent = row["judge"], row["opponent"]
                yield _measured(f"{judge}_{opponent}", row[key], "evaluate", f"{key} of {judge} vs {opponent}", end)


def _training(records: Sequence[Record]) -> Iterator[Measurement]:
    """Yield the measurements over the records of a training's optimizer steps."""
    if not records:
        return
    late = records[len(records) // 2 :]
    for name in (source.name for source in SOURCES.values() if source.step == METRICS):
        if all(name in record for record in late):
            mean = fmean(record[name] for record in late)
            yield _measured(name, mean, "train", f"{METRICS}: {name}, second half of the steps")
    if "distance" in records[0]:  # before the first step: of pairs no training has seen
        yield _measured("distance_new", float(records[0]["distance"]), "train", f"{METRICS}: distance, first step")
    ratios = [math.log(record["r_star"]) for record in records if "r_star" in record]
    if ratios:
        mean = math.exp(fmean(ratios))
        yield _measured("r_star", mean, "train", f"{METRICS}: r_star, geometric mean of the steps")
