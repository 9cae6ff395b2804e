"""Policies of a study that were measured on other machines: a seed each, one report.

    python -m scripts.study small seed=1 ...                              writes runs/<run.name>/policies.json
    python -m scripts.study small seed=0 --with there/policies.json ...   reports both

A file has the settings that all its arms share, and the digests of the files that these name. DataError where they
differ from those of this study.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from scripts.study.read import Policy, StudyData
from sparring.pipeline.config.model import Config
from sparring.pipeline.report.recipe import is_local
from sparring.stages import fields
from sparring.stages.errors import DataError
from sparring.stages.evaluate.stage import JUDGES

MAY_DIFFER = ("iterations", "seed", "evaluate.crossplay", "evaluate.kl", "evaluate.best_of")
"""Settings that may differ between machines, beside those of `is_local`: how long a run is, what else it measures."""
DIGITS = 6
"""Of a rate in the file."""


def shared(configs: Sequence[Config]) -> dict[str, Any]:
    """Return dotted key -> value of what all arms have alike, without what may differ between machines."""
    flat = [fields.dotted(asdict(one)) for one in configs]
    first = flat[0]
    alike = {key: value for key, value in first.items() if all(one.get(key) == value for one in flat)}
    return {key: value for key, value in alike.items() if key not in MAY_DIFFER and not is_local(key)}


def write(path: Path, data: StudyData, settings: Mapping[str, Any]) -> None:
    """Write the policies, each with its win rates on each prompt."""
    prompts = sorted({prompt for one in data.policies for rates in one.rates.values() for prompt in rates})
    rows = []
    for policy in data.policies:
        columns = {}
        for judge, rates in policy.rates.items():
            columns[judge] = [round(rates[prompt], DIGITS) if prompt in rates else None for prompt in prompts]
        rows.append({**asdict(policy), "rates": columns})
    base = {str(seed): dict(figures) for seed, figures in data.base.items()}
    content = {"settings": settings, "prompts": prompts, "base": base, "policies": rows}
    path.write_text(json.dumps(content, default=list) + "\n", encoding="utf-8")


def joined(data: StudyData, paths: Iterable[Path], settings: Mapping[str, Any]) -> StudyData:
    """Return the policies with those of the files; DataError where one does not fit, or brings one again."""
    for path in paths:
        content = _read(path)
        _check(path, content["settings"], settings)
        known = {(one.arm, one.seed, one.iteration) for one in data.policies}
        added = []
        for row in content["policies"]:
            columns = {judge: zip(content["prompts"], row["rates"][judge], strict=True) for judge in JUDGES}
            rates = {judge: {p: rate for p, rate in column if rate is not None} for judge, column in columns.items()}
            added.append(Policy(**{**row, "rates": rates}))
        again = [one for one in added if (one.arm, one.seed, one.iteration) in known]
        if again:
            raise DataError(
                f"{path}: {again[0].arm}, seed {again[0].seed}, iteration {again[0].iteration} is in both; "
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
