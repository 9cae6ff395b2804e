"""The table of a run: a column for each iteration, a row for each figure, read from manifests alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.pipeline.artifact import Manifest
from sparring.pipeline.diagnostics.panel import Panel
from sparring.pipeline.report.panel import pairs_of
from sparring.pipeline.report.suites import Grid, grid
from sparring.pipeline.run_history import RunHistory, Steps
from sparring.stages.evaluate.bootstrap import Estimate, detectable_of, outcome


@dataclass(frozen=True)
class Figure:
    """A row of the table: its value in an iteration, None where there is none, and how the value is shown."""

    value: Callable[[Steps], Any]
    show: Callable[[Any], str] = str
    panel: str = ""
    """A figure of the panel with an interval, in place of `value`."""

    def find(self, steps: Steps, panel: Panel | None = None) -> Any:
        """Return the value; of the panel {value, low, high}."""
        if not self.panel:
            return self.value(steps)
        ends = {"value": "", "low": "_low", "high": "_high"}
        found = {key: panel.get(f"{self.panel}{tail}") if panel else None for key, tail in ends.items()}
        return None if found["value"] is None else found

    def __call__(self, steps: Steps, panel: Panel | None = None) -> str | None:
        value = self.find(steps, panel)
        return None if value is None else self.show(value)


def with_panels(done: dict[int, Steps], seen: Sequence[Panel]) -> list[tuple[int, Steps, Panel | None]]:
    """Return iteration, manifests and collapse panel of each iteration."""
    by_iteration = {panel.iteration: panel for panel in seen}
    return [(t, steps, by_iteration.get(t)) for t, steps in done.items()]


def rows_of(done: dict[int, Steps], seen: Sequence[Panel]) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each figure that some iteration has, and what is shown of it in each."""
    for name, figure in FIGURES:
        cells = [figure(steps, panel) for _, steps, panel in with_panels(done, seen)]
        if any(cell is not None for cell in cells):
            yield name.replace("{pairs}", pairs_of(seen)), [cell or "" for cell in cells]


def suites_of(history: RunHistory) -> Grid:
    """Return what suites found of the run, beside what was published for its recipe."""
    names = tuple(f"{best}{judge}: vs base" for best in ("", "best of n, ") for judge in ("oracle", "second judge"))
    heldout = {n: {t: figure(steps) for t, steps in history.done.items()} for n, figure in FIGURES if n in names}
    return grid(history.folder, history.done, heldout)


def _number(label: str, key: str, form: str) -> Figure:
    def value(steps: Steps) -> Any:
        return steps[label].summary.get(key) if label in steps else None

    return Figure(value, lambda number: format(number, form))


def _dropped(steps: Steps) -> dict[str, int] | None:
    return steps["pairs"].rows["dropped"] if "pairs" in steps else None


def _reasons(dropped: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items())) or "0"


def _kept(steps: Steps) -> int | None:
    return steps["pairs"].rows["out"] if "pairs" in steps else None


def compared(steps: Steps, judge: str, opponent: str, label: str = "evaluate") -> dict[str, Any] | None:
    """Return what `evaluate` says of the new policy against `opponent` by `judge`, None where it says nothing.

    label: `evaluate_best` for its best of n responses.
    """
    summary = steps[label].summary if label in steps else {"comparisons": []}
    rows = (row for row in summary["comparisons"] if (row["judge"], row["opponent"]) == (judge, opponent))
    return next((with_finding(row, summary.get("confidence", 0.95)) for row in rows), None)


def with_finding(row: dict[str, Any], confidence: float) -> dict[str, Any]:
    """Return a row of `evaluate` with `detectable`, the least difference from 1/2 that can be told, and `finding`.

    finding: better, worse, none (no difference detectable), or unknown where fewer than two prompts were judged.
    """
    if row["win_rate"] is None:
        return {**row, "detectable": None, "finding": "unknown"}
    least = detectable_of(row["low"], row["high"], confidence)
    ends = {name: row[key] - 0.5 for name, key in (("mean", "win_rate"), ("low", "low"), ("high", "high"))}
    return {**row, "detectable": least, "finding": outcome(Estimate(**ends, n=row.get("n", 2)), least)}


def _win(judge: str, opponent: str, label: str = "evaluate") -> Figure:
    return Figure(lambda steps: compared(steps, judge, opponent, label), win_rate)


def win_rate(row: dict[str, Any]) -> str:
    """Return `.540 [.512, .568]`, with "not informative" where the interval contains 1/2, and what is too small."""
    if row["win_rate"] is None:
        return "no prompts"
    text = interval(row)
    if not row["informative"]:
        return f"{text}\nnot informative"
    return text if row["finding"] in ("better", "worse") else f"{text}\nno difference detectable"


def _estimate(name: str) -> Figure:
    """Return a figure of the panel that was estimated on samples, with its interval."""
    return Figure(lambda steps: None, lambda found: "{value:.3f} [{low:.3f}, {high:.3f}]".format(**found), panel=name)


def interval(row: Mapping[str, Any]) -> str:
    """Return `0.565 [0.541, 0.590]`."""
    return f"{row['win_rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _rate(label: str) -> Figure:
    def value(steps: Steps) -> float | None:
        manifest = steps.get(label)
        tokens = manifest.stats.get("tokens") if manifest else None
        return tokens / manifest.seconds if manifest and tokens and manifest.seconds else None

    return Figure(value, "{:.0f}".format)


def _seconds(*labels: str) -> Figure:
    return _seconds_where(lambda label: label in labels)


def _seconds_where(counts: Callable[[str], bool]) -> Figure:
    def value(steps: Steps) -> float | None:
        there = {steps[label].fingerprint: steps[label].seconds for label in steps if counts(label)}
        return sum(there.values()) if there else None

    return Figure(value, "{:.1f}".format)


SCORES = tuple(f"score_{judge}_{opponent}" for judge in ("oracle", "second") for opponent in ("previous", "base"))

FIGURES: tuple[tuple[str, Figure], ...] = (
    ("prompts", _number("sample", "prompts", "d")),
    ("responses", _number("sample", "responses", "d")),
    ("pairs kept", Figure(_kept)),
    ("pairs dropped", Figure(_dropped, _reasons)),
    ("response tokens, mean", _number("sample", "length_mean", ".1f")),
    ("response tokens, p95", _number("sample", "length_p95", ".0f")),
    ("ties of the oracle", _number("score", "tie_rate", ".1%")),
    ("winner changes with the order", _number("score", "position_disagreement", ".1%")),
    ("cycles of P", _number("pairs", "cycle_rate", ".1%")),
    ("win rate ~ length, correlation", _number("pairs", "length_correlation", "+.2f")),
    ("similarity, mean", _number("embed", "similarity_mean", ".3f")),
    ("|P̃-P|, mean", _number("calibrate", "mean_shift", ".4f")),
    ("pairs turned by the gate", _number("calibrate", "flips", "d")),
    ("oracle: vs previous", _win("oracle", "previous")),
    ("oracle: vs base", _win("oracle", "base")),
    ("second judge: vs previous", _win("second", "previous")),
    ("second judge: vs base", _win("second", "base")),
    ("best of n: responses", _number("best", "n", "d")),
    ("best of n, oracle: vs one response", _win("oracle", "single", "evaluate_best")),
    ("best of n, oracle: vs base", _win("oracle", "base", "evaluate_best")),
    ("best of n, second judge: vs one response", _win("second", "single", "evaluate_best")),
    ("best of n, second judge: vs base", _win("second", "base", "evaluate_best")),
    ("best of n: tokens, mean", _number("best", "length_mean", ".1f")),
    ("KL to the previous policy, nats", _estimate("kl_previous")),
    ("KL to the base, nats", _estimate("kl_base")),
    ("log-ratio to the previous policy under the sampling, nats", _estimate("log_ratio_previous")),
    ("log-ratio to the base under the sampling, nats", _estimate("log_ratio_base")),
    ("optimizer steps", _number("train", "steps", "d")),
    ("h chosen after training ({pairs})", _number("train", "probe_h_w", "+.3f")),
    ("h rejected after training ({pairs})", _number("train", "probe_h_l", "+.3f")),
    ("|h| before training, noise (8 pairs at most)", _number("train", "noise", ".1e")),
    ("parameters changed", _number("train", "changed_fraction", ".1%")),
    ("pairs in the band, measured on the output head", _number("train", "in_band", ".1%")),
    ("pairs with ρ ≤ 0 there: any ratio serves", _number("train", "rho_negative", ".1%")),
    ("pairs reversed", _number("train", "reversed", ".1%")),
    ("repulsion's gradient / objective's", _number("train", "repulsion_ratio", ".3f")),
    ("‖u_w-u_l‖ of the first batch, before training", _number("train", "distance_new", ".3f")),
    ("reward calibration δ, last step", _number("train", "delta", ".3f")),
    ("sampled tokens/s", _rate("sample")),
    ("trained tokens/s", _rate("train")),
    ("seconds: prompts", _seconds("prompts")),
    ("seconds: sample", _seconds("sample")),
    ("seconds: score", _seconds("score")),
    ("seconds: embed", _seconds("embed")),
    ("seconds: pairs, calibrate", _seconds("pairs", "calibrate")),
    ("seconds: reference", _seconds("reference", "reference_base")),
    ("seconds: train", _seconds("train")),
    ("seconds: held-out sample", _seconds("sample_base", "sample_heldout")),
    ("seconds: evaluate", _seconds(*SCORES, "evaluate")),
    ("seconds: KL", _seconds_where(lambda label: label.startswith("logprobs"))),
    ("seconds: cross-play", _seconds_where(lambda label: label == "crossplay" or "_vs" in label)),
    ("seconds: best of n", _seconds_where(lambda label: "best" in label)),
)


def _summary(steps: Steps, label: str) -> dict[str, Any]:
    return steps[label].summary if label in steps else {}


def _imported(manifest: Manifest) -> str:
    given = manifest.summary["provenance"]
    return f"{manifest.step} imported: {manifest.rows['out']:,} of the {given['rows']:,} rows of {given['path']}"


def said(history: RunHistory) -> dict[int, list[str]]:
    """Return iteration -> what stands beside its figures: what was imported and dropped, and the rules that fired."""
    return {
        t: [*notes(steps), *(f"WARNING {one}" for one in history.fired if one.iteration == t)]
        for t, steps in history.done.items()
    }


def notes(steps: Steps) -> list[str]:
    """Return what must be said of an iteration's prompts and of what was imported."""
    lines = [_imported(steps[label]) for label in ("pairs", "sample") if label in steps and steps[label].imported][:1]
    if "sample" in steps and steps["sample"].summary.get("redealt"):
        lines.append("the prompts were dealt again under a new permutation: they had been played before")
    if "evaluate_best" in steps:
        lines.append("best of n: the oracle judges here what it chose itself; the second judge did not choose")
    for label in ("prompts", "sample", "sample_base", "sample_heldout"):
        there = steps.get(label)
        dropped = there.rows["dropped"] if there and not there.imported else {}
        if dropped:
            counts = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
            lines.append(f"{label}: prompts dropped: {counts}")
    return lines


def alarms(steps: Steps) -> list[str]:
    """Return a line for each opponent against which only the oracle finds the policy better."""
    opponents = steps["evaluate"].summary["alarms"] if "evaluate" in steps else []
    return [f"ALARM: against {one} the oracle rises while the second judge falls; it may be gamed" for one in opponents]
