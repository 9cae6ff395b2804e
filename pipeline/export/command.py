"""`sparring export RUN`: the policy of an iteration as a folder with a model card; its data and a push if asked for.

sparring export myrun                                # the best iteration by the second judge -> exports/myrun-iter-2
sparring export myrun --iter 3 --dtype bfloat16 --to out --datasets
sparring export myrun --push OWNER/NAME --dry-run    # what would go where; nothing is written or sent
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from sparring.pipeline.cli import options
from sparring.pipeline.cli.options import RUNS, Run, Runs
from sparring.pipeline.export import dataset, push
from sparring.pipeline.export.base import base_of
from sparring.pipeline.export.card import model_card
from sparring.pipeline.export.choose import Choice, choose
from sparring.pipeline.export.folder import Piece, dtype_of, model_pieces, refuse_existing, text_piece, write
from sparring.pipeline.report.data import ArmReport
from sparring.pipeline.runs import run_history
from sparring.pipeline.store.files import check_export
from sparring.stages.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Export:
    """What will be written."""

    target: Path
    source: Path
    dtype: str
    model: list[Piece]
    data: dict[str, list[Piece]]
    """samples, pairs -> files."""

    @property
    def pieces(self) -> list[Piece]:
        """All files by their place in the folder."""
        inside = [replace(p, name=f"{push.DATASETS}/{kind}/{p.name}") for kind, ps in self.data.items() for p in ps]
        return [*self.model, *inside]


def run(
    run: Run = "default",
    iteration: Annotated[
        int | None, options.value("T", "iteration to export (default: the best by the second judge)", "--iter")
    ] = None,
    to: Annotated[Path | None, options.path("FOLDER", "folder to write (default: exports/RUN-iter-T)")] = None,
    dtype: Annotated[
        Literal["bfloat16", "float32"] | None, typer.Option(help="data type of the weights (default: as published)")
    ] = None,
    datasets: Annotated[
        bool, options.flag("--datasets", "export responses and pairs as well, below datasets/")
    ] = False,
    repo: Annotated[
        str | None, options.value("OWNER/NAME", "repository of the hub to push to; asks first", "--push")
    ] = None,
    yes: Annotated[bool, options.flag("--yes", "push without asking")] = False,
    dry_run: Annotated[bool, options.flag("--dry-run", "list what would go where; write and send nothing")] = False,
    runs: Runs = RUNS,
) -> None:
    """Write a policy as a folder with a model card.

    Example: sparring export myrun --iter 3 --dtype bfloat16 --to out
    """
    arm = ArmReport.of(run_history.open_run(runs, run))
    choice = choose(arm, iteration)
    target = to or Path("exports") / f"{arm.history.name.replace('/', '-')}-iter-{choice.iteration}"
    check_export(target, "--to")
    refuse_existing(target)
    if repo and not dry_run:
        push.check(repo)
    made = planned(arm, choice, target, dtype, datasets)
    print("\n".join(choice.why))
    kinds = list(made.data)
    if repo or dry_run:
        print("\n".join(listed(made, repo)))
    if dry_run:
        print("dry run: nothing was written or sent")
        return
    if repo and not push.confirm([name for _, name in push.repositories(repo, kinds).values()], yes):
        print("nothing was written or sent")
        return
    write(made.pieces, made.source, made.dtype, target)
    print(f"exported to {target}")
    if repo:
        print("\n".join(f"sent to {page}" for page in push.push(target, repo, kinds)))


def planned(arm: ArmReport, choice: Choice, target: Path, dtype: str | None, datasets: bool) -> Export:
    """Return what the export holds, every file of the policy verified."""
    run = arm.history
    source = run.artifact(choice.iteration, "train")
    if source is None:
        raise DataError(f"run {run.name}: iteration {choice.iteration} is not trained.")
    folder, base = source.folder(), base_of(run)
    published = dtype_of(folder)
    wanted = dtype or published
    card = model_card(arm, choice, base, wanted, cast=wanted != published)
    return Export(
        target=target,
        source=folder,
        dtype=wanted,
        model=[*model_pieces(source, folder, wanted), text_piece("README.md", card)],
        data={k: ps for k, ps in dataset.pieces(run, base, choice.iteration).items() if ps} if datasets else {},
    )


def listed(made: Export, repo: str | None) -> list[str]:
    """Return a line for each file: its size, and where it goes."""
    lines = [f"to the folder {made.target}:", *_lines(made.pieces)]
    if not repo:
        return lines
    files = {"": made.model, **{f"{push.DATASETS}/{kind}": pieces for kind, pieces in made.data.items()}}
    for inside, (kind, name) in push.repositories(repo, list(made.data)).items():
        lines += [f"to the {kind} repository {name} of the hub, private where it does not exist yet:"]
        lines += _lines(files[inside])
    return lines


def _lines(pieces: Iterable[Piece]) -> list[str]:
    pieces = list(pieces)
    total = sum(piece.bytes for piece in pieces)
    sizes = [(f"{'about ' if piece.cast else ''}{piece.bytes:,}", piece.name) for piece in pieces]
    return [f"{size:>24} bytes  {name}" for size, name in sizes] + [f"{total:>24,} bytes  {len(pieces)} files"]
