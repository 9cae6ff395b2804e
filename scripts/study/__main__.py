"""Runs a study and reports it: arms and seeds as one plan, compared prompt by prompt.

    python -m scripts.study smoke                                          two arms, two small iterations
    python -m scripts.study small prompts=file prompts.path=my.jsonl       six arms, two seeds, three iterations
    python -m scripts.study sweep                                          learning rate x global batch
    python -m scripts.study small seed=0 --with there/policies.json ...    with what another machine has measured

It is a `sparring run -m`: run it again to resume; what arms share is made once; overrides that follow replace the
study's own. The report is runs/<run.name>/report.md, with figure.png, rows.json and policies.json beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.study import elsewhere, figure, read, report
from scripts.study.presets import STUDIES, Study, label, overrides_of
from sparring.pipeline import cli, config
from sparring.pipeline.cli import prepare as cli_prepare
from sparring.pipeline.report.terminal import stdout_console
from sparring.stages.errors import ConfigError, DataError, SparringError


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing of a study, then report it."""
    arguments = _parser().parse_intermixed_args(argv)
    study = STUDIES[arguments.study]
    try:
        overrides = overrides_of(study, arguments.overrides)
        _check(study, overrides)
        code = 0 if arguments.report else cli.main(["plan" if arguments.plan else "run", "-m", *overrides])
        if code or arguments.plan:
            return code
        _report(study, overrides, arguments.others)
    except SparringError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=[*STUDIES])
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--plan", action="store_true", help="show the steps, tokens, minutes and disk; run nothing")
    only.add_argument("--report", action="store_true", help="report what is done so far; run nothing")
    parser.add_argument(
        "--with", dest="others", type=Path, action="append", default=[], metavar="FILE",
        help="a policies.json of the same study from another machine, to be reported as well; may be repeated",
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, which replace those of the study")
    return parser


def _check(study: Study, overrides: Sequence[str]) -> None:
    arms = {label(arm) for arm in cli_prepare.arms_of(overrides, multirun=True)}
    if len(arms) < 2 or study.baseline not in arms:
        raise ConfigError(
            f"the arms are {', '.join(sorted(arms))}: a study needs two, and {study.baseline} to compare them with."
        )


def _report(study: Study, overrides: Sequence[str], others: Sequence[Path]) -> None:
    arms = {arm: config.load(words) for arm, words in cli_prepare.arms_of(overrides, multirun=True).items()}
    first = next(iter(arms.values()))
    folder = Path(first.paths.runs) / first.run.name
    data = read.read(folder, {arm: one.seed for arm, one in arms.items()})
    if not data.policies:
        raise DataError(f"{folder}: no policy of this study is evaluated yet; run it without --report.")
    settings = {**elsewhere.shared(list(arms.values())), **data.files}
    planned = len(arms) * first.iterations
    elsewhere.write(folder / "policies.json", data, settings)
    own = len(data.policies)
    data = elsewhere.joined(data, others, settings)
    planned += len(data.policies) - own
    made, compared = report.make(first.run.name, study, data, first, planned)
    path = folder / "figure.png"
    figures, base = report.averaged(data.policies), report.mean_of(list(data.base.values()))
    figure.draw(path, compared, figures, base, made.title)
    report.write(made, folder, path.name)
    report.show(made, stdout_console())
    print(f"{folder / 'report.md'}, {path.name}, rows.json")


if __name__ == "__main__":
    sys.exit(main())
