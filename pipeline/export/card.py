"""The model card of an exported policy, from a run's report and manifests: what it is, how good, how it was made.

card.md.jinja has its words. Whatever is put into it is escaped, unless it is markup of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sparring.pipeline.export.base import UNKNOWN, Base
from sparring.pipeline.export.choose import Choice
from sparring.pipeline.export.markdown import escaped, front, table
from sparring.pipeline.report import recipe
from sparring.pipeline.report.answer import alarms
from sparring.pipeline.report.data import ArmReport
from sparring.pipeline.report.figures import JUDGED
from sparring.pipeline.report.judging import JUDGES, are_independent, left_out, win_rate_name, worth_of_judges
from sparring.pipeline.report.suites import published_of, published_rows
from sparring.pipeline.runs.run_history import RunHistory, Steps
from sparring.stages.plain import counts_text

COMPARED = [win_rate_name(judge, opponent) for judge, opponent in JUDGED]
"""Figures of the report that the card shows."""
SETTINGS: dict[str, tuple[str, str, str]] = {
    "sample": ("sampling", "sampler", "k temperature top_p min_p max_tokens dtype engine seed"),
    "score": ("annotation", "", "oracle"),
    "score_second_base": ("second judge", "", "oracle"),
    "pairs": ("pairs", "selection", "win_rate selection.by require_head_to_head capped"),
    "calibrate": ("gate", "gate", "name exponent floor floor_quantile ceil ceil_quantile scope"),
    "train": (
        "train",
        "trainer",
        "objective repulsion calibration adapter optimizer lr weight_decay warmup_ratio epochs global_batch "
        "max_grad_norm max_length truncate dtype publish_dtype seed",
    ),
}
"""Label of a step -> its title, the group of its settings, and those that the card has; some are groups themselves."""
TRAINING = {
    "steps": "optimizer steps",
    "tokens": "tokens",
    "probe_h_w": "h chosen, after",
    "probe_h_l": "h rejected, after",
    "probe_pairs": "pairs that h is of",
    "changed_fraction": "share of weights changed",
    "mean_change": "mean change of a weight",
}
"""Key of a training's summary -> column."""


def model_card(arm: ArmReport, choice: Choice, base: Base, dtype: str, cast: bool) -> str:
    """Return README.md of the folder. dtype: of its weights; cast: they were published in another."""
    run, t = arm.history, choice.iteration
    before = {i: steps for i, steps in run.steps.items() if i <= t}
    train, calibrate = before[t]["train"], before[t].get("calibrate")
    made, objective = train.made_with, train.setting("objective.name")
    fields = {
        "base_model": base.repo,
        "base_model_relation": "finetune" if base.repo else None,
        **base.stated,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "datasets": datasets_of(run),
        "tags": ["sparring", "self-play", "preference-optimization", escaped(objective)],
    }
    sampling: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 256}
    if "sample" in before[t]:
        sampling = {name: before[t]["sample"].setting(f"sampler.{name}", value) for name, value in sampling.items()}
    versions = (made.get(kind, {}) for kind in ("code", "packages", "hardware"))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # markup of ours is Markup; all else has passed `escaped`, which escapes HTML too
        finalize=lambda value: value if isinstance(value, Markup) else Markup(escaped(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md.jinja").render(
        table=lambda head, rows: Markup("\n".join(table(head, rows))),
        front=Markup("\n".join(front(fields)).rstrip()),
        base=base, unknown=UNKNOWN, run=run, t=t, dtype=dtype, cast=cast, objective=objective,
        repulsion=train.setting("repulsion.name"), gate=calibrate.setting("gate.name") if calibrate else "off",
        imported=sorted({m.step for steps in before.values() for m in steps.values() if m.imported}),
        version=made.get("code", {}).get("sparring", "of an unknown version"),
        why=map(Markup, choice.why),
        **_results(arm, before),
        sampling={name: f"{float(value):g}" for name, value in sampling.items()},
        prompts=_prompts(run),
        data=[_data_row(i, steps) for i, steps in before.items() if i],
        settings=list(_settings(before[t])),
        training_heads=list(TRAINING.values()),
        training=[
            [i, *(_number_text(steps["train"].summary.get(name)) for name in TRAINING)]
            for i, steps in before.items()
            if "train" in steps and i
        ],
        lineage=[
            (i, label, manifest.name, manifest.fingerprint, manifest.content)
            for i, steps in before.items()
            for label, manifest in steps.items()
        ],
        made_with=[
            *(item for version in versions for item in version.items()),
            ("trained", made.get("created", "")),
            ("seconds", f"{train.seconds:.0f}"),
        ],
    )  # fmt: skip


def datasets_of(run: RunHistory) -> list[str]:
    """Return the repositories of the prompts, [] where they are no dataset of the hub."""
    prompts = run.config.get("prompts", {})
    name = str(prompts.get("dataset") or "")
    if prompts.get("source") != "hub" or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return []
    slices = range(1, (prompts.get("slices") or 1) + 1)
    return [name.replace("{slice}", str(i)) for i in slices] if "{slice}" in name else [name]


def _results(arm: ArmReport, before: dict[int, Steps]) -> dict[str, Any]:
    """Return a row of win rates for each iteration, what must be said of them, and what was published."""
    evaluated = [i for i, steps in before.items() if "evaluate" in steps]
    remarks = []
    for i in evaluated:
        figures = arm.figures[i]
        best = {named: figures.get(f"best of n, {win_rate_name(judge, 'base')}") for judge, named in JUDGES.items()}
        rates = [f"{judge}: {one.text}" for judge, one in best.items() if one]
        lines = [*alarms(before[i]), *left_out_lines(before[i])]
        if rates and "best of n: responses" in figures:
            n = figures["best of n: responses"].text
            lines.append(f"the oracle's best of {n} responses vs base: {'; '.join(rates)}".replace("\n", ", "))
        remarks += [Markup(f"iteration {i}: {line}") for line in lines]
    remarks += [
        Markup(f"iteration {one.iteration}: WARNING {escaped(one)}") for one in arm.warnings if one.iteration in before
    ]
    if not evaluated:
        return {"evaluated": None, "remarks": remarks}
    last, published = before[evaluated[-1]], published_of(arm.history.config)
    of_judges = worth_of_judges(last) or ["What the judges are worth was not measured."]
    summary = last["evaluate"].summary
    rows = {i: [arm.figures[i].get(name) for name in COMPARED] for i in evaluated}
    return {
        "evaluated": {"last": evaluated[-1], "prompts": summary["prompts"], "confidence": summary["confidence"]},
        "independent": are_independent(last),
        "compared": COMPARED,
        "rates": [
            [i, *(Markup(one.text.replace("\n", ", ") if one else "") for one in row)] for i, row in rows.items()
        ],
        "remarks": [*remarks, *of_judges],
        "published": published,
        "published_rows": list(published_rows(published)) if published else [],
        "changed": recipe.differences(arm.history) if published else [],
    }


def left_out_lines(steps: Steps) -> list[str]:
    """Return a line for each win rate of which held-out prompts are left out, and why."""
    rows = steps["evaluate"].summary["comparisons"]
    whys = ((win_rate_name(row["judge"], row["opponent"]), left_out(steps, row)) for row in rows)
    return [f"{name}: left out of the held-out prompts are {why}" for name, why in whys if why]


def _prompts(run: RunHistory) -> dict[str, Any]:
    """Return where the prompts are from, without a folder of this machine, and how many there are."""
    prompts, made = run.config.get("prompts", {}), run.manifest(0, "prompts")
    place = prompts.get("dataset") or Path(str(prompts.get("path") or prompts.get("source"))).name
    return {
        "place": Path(place).name if str(place).startswith(("/", "~", ".")) else place,
        "split": prompts.get("split") if prompts.get("source") == "hub" else None,
        "counts": made.summary if made and "heldout" in made.summary else None,
    }


def _data_row(i: int, steps: Steps) -> list[object]:
    """Return iteration, prompts, responses, pairs, and what was dropped."""
    summary = steps["sample"].summary if "sample" in steps else {}
    pairs, dropped = ("", {})
    if "pairs" in steps:
        pairs, dropped = steps["pairs"].rows["out"], steps["pairs"].rows["dropped"]
    return [i, summary.get("prompts", ""), summary.get("responses", ""), pairs, counts_text(dropped) or "0"]


def _settings(steps: Steps) -> Iterator[tuple[str, str]]:
    """Yield each setting of the steps of an iteration, and its value."""
    for label, (title, group, names) in SETTINGS.items():
        for name in names.split() if label in steps else ():
            value = steps[label].setting(name, steps[label].setting(f"{group}.{name}"))
            if value is not None:
                yield f"{title}: {name.removesuffix('.by')}", _flat(value)


def _flat(value: object) -> str:
    """Return `hinge (weight 0.002)` of a group of settings."""
    if not isinstance(value, dict):
        return str(value)
    inner = ", ".join(f"{key} {_flat(one)}" for key, one in value.items() if key not in ("name", "kind") and one)
    name = str(value.get("name") or value.get("kind") or "")
    return name if not inner or name == "off" else f"{name} ({inner})" if name else inner


def _number_text(value: object) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
