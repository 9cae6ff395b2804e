"""Policies of a study that were measured on other machines: a seed each, one report.

    python -m scripts.study small seed=1 ...                              writes runs/<run.name>/policies.json
    python -m scripts.study small seed=0 --with there/policies.json ...   reports both

A file says what was the same for all its arms; where that differs, nothing is compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from scripts.study.read import Policy, StudyData
from sparring.pipeline.config.model import Config
from sparring.stages import fields
from sparring.stages.errors import DataError
from sparring.stages.evaluate.stage import JUDGES

FREE = ("run.", "paths.", "hardware.", "tracking.", "diagnostics.", "published", "iterations", "seed", "prompts.path")
"""Keys that may differ: where and how long it ran."""
RUNTIME = (
    "trainer.checkpoint_steps",
    "trainer.band_every",
    "trainer.gradient_checkpointing",
    "evaluate.crossplay",
    "evaluate.kl",
    "evaluate.best_of",
)
DIGITS = 6
"""Of a rate in the file."""


def shared(configs: Sequence[Config]) -> dict[str, Any]:
    """Return dotted key -> value of what all arms have alike, without what may differ between machines."""
    flat = [fields.dotted(asdict(one)) for one in configs]
    first = flat[0]
    alike = {key: value for key, value in first.items() if all(one.get(key) == value for one in flat)}
    return {key: value for key, value in alike.items() if not key.startswith(FREE) and key not in RUNTIME}


def write(path: Path, data: StudyData, settings: Mapping[str, Any]) -> None:
    """Write the policies, each with its win rates on each prompt."""
    prompts = sorted({prompt for one in data.policies for rates in one.rates.values() for prompt in rates})
    rows = [{**asdict(one), "rates": _columns(one, prompts)} for one in data.policies]
    base = {str(seed): dict(figures) for seed, figures in data.base.items()}
    content = {"settings": settings, "prompts": prompts, "base": base, "policies": rows}
    path.write_text(json.dumps(content, default=list) + "\n", encoding="utf-8")


def _columns(policy: Policy, prompts: Sequence[str]) -> dict[str, list[float | None]]:
    return {judge: [_rounded(rates.get(prompt)) for prompt in prompts] for judge, rates in policy.rates.items()}


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, DIGITS)


def joined(data: StudyData, paths: Iterable[Path], settings: Mapping[str, Any]) -> StudyData:
    """Return the policies with those of the files; DataError where one does not fit, or brings one again."""
    for path in paths:
        content = _read(path)
        _check(path, content["settings"], settings)
        added = tuple(_policies(content))
        there = {(one.arm, one.seed, one.iteration) for one in data.policies}
        again = [one for one in added if (one.arm, one.seed, one.iteration) in there]
        if again:
            raise DataError(
                f"{path}: {again[0].arm}, seed {again[0].seed}, iteration {again[0].iteration} is there already; "
                "leave one of them out (seed=...)."
            )
        base = {int(seed): figures for seed, figures in content["base"].items()}
        data = replace(data, policies=(*data.policies, *added), base={**base, **data.base})
    return data


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"--with {path}: {error}; give a policies.json that a study has written.") from None
    if not isinstance(content, dict) or not content.keys() >= {"settings", "prompts", "base", "policies"}:
        raise DataError(f"--with {path}: not a policies.json that a study has written.")
    return content


def _check(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    plain = json.loads(json.dumps(ours, default=list))
    differing = sorted(key for key in theirs.keys() & plain.keys() if theirs[key] != plain[key])
    if differing:
        key = differing[0]
        raise DataError(f"{path}: {key} is {theirs[key]} there, {plain[key]} in this study: not comparable.")


def _policies(content: Mapping[str, Any]) -> Iterable[Policy]:
    for row in content["policies"]:
        columns = {judge: zip(content["prompts"], row["rates"][judge], strict=True) for judge in JUDGES}
        rates = {judge: {p: rate for p, rate in column if rate is not None} for judge, column in columns.items()}
        yield Policy(**{**row, "rates": rates})
