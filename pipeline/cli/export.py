"""`sparring export RUN`: the policy of an iteration as a folder with a model card; its data and a push if asked for.

sparring export myrun                                # the best iteration by the second judge -> exports/myrun-iter-2
sparring export myrun --iter 3 --dtype bfloat16 --to out --datasets
sparring export myrun --push OWNER/NAME --dry-run    # what would go where; nothing is written or sent
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from sparring.pipeline.cli import options
from sparring.pipeline.cli.options import RUNS, Run, Runs
from sparring.pipeline.export import dataset, push
from sparring.pipeline.export.base import base_of
from sparring.pipeline.export.card import model_card
from sparring.pipeline.export.choose import choose
from sparring.pipeline.export.folder import Piece, dtype_of, model_pieces, refuse_existing, text_piece, write
from sparring.pipeline.report.data import ArmReport
from sparring.pipeline.runs import run_history
from sparring.pipeline.store.files import check_export


def export(
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
    history, choice = arm.history, choose(arm, iteration)
    target = to or Path("exports") / f"{history.name.replace('/', '-')}-iter-{choice.iteration}"
    check_export(target, "--to")
    refuse_existing(target)
    if repo and not dry_run:
        push.check(repo)
    source = history.artifact(choice.iteration, "train")
    assert source is not None  # `choose` returns a trained iteration
    folder, base = source.folder(), base_of(history)
    published = dtype_of(folder)
    wanted = dtype or published
    card = model_card(arm, choice, base, wanted, cast=wanted != published)
    files = {"": [*model_pieces(source, folder, wanted), text_piece("README.md", card)]}
    if datasets:
        files |= dataset.pieces(history, base, choice.iteration)
    pieces = [replace(piece, name=str(Path(inside) / piece.name)) for inside, some in files.items() for piece in some]
    repositories = push.repositories(repo, files) if repo else {}
    print("\n".join(choice.why))
    if repo or dry_run:
        print_files(f"to the folder {target}:", pieces)
    for inside, (kind, name) in repositories.items():
        print_files(f"to the {kind} repository {name} of the hub, private where it does not exist yet:", files[inside])
    if dry_run:
        print("dry run: nothing was written or sent")
        return
    if repo and not push.confirm([name for _, name in repositories.values()], yes):
        print("nothing was written or sent")
        return
    write(pieces, folder, wanted, target)
    print(f"exported to {target}")
    for page in push.push(target, repositories):
        print(f"sent to {page}")


def print_files(title: str, pieces: Sequence[Piece]) -> None:
    """Print a line for each file with its size, and how many bytes they are."""
    print(title)
    for piece in pieces:
        size = f"{'about ' if piece.cast else ''}{piece.bytes:,}"
        print(f"{size:>24} bytes  {piece.name}")
    print(f"{sum(piece.bytes for piece in pieces):>24,} bytes  {len(pieces)} files")
