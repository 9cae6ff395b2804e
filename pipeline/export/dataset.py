"""The responses and pairs of a run as datasets in the hub's layout: parquet as it is in the store, and a card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from sparring.pipeline.export.base import Base
from sparring.pipeline.export.card import datasets_of
from sparring.pipeline.export.folder import Piece, text_piece
from sparring.pipeline.export.markdown import escaped, front, table
from sparring.pipeline.runs.run_history import RunHistory
from sparring.pipeline.store.manifest import Manifest
from sparring.stages.plain import counts_text

KINDS = {
    "samples": ("sample", "What the policy of each iteration answered: K responses a prompt, text and token ids"),
    "pairs": (
        "pairs",
        "Who beat whom: the matrix P, win rates, and which response was chosen and which rejected, by its place in the "
        "samples of the same id",
    ),
}


@dataclass(frozen=True, kw_only=True)
class _Part:
    iteration: int
    manifest: Manifest
    paths: tuple[Path, ...]


def pieces(run: RunHistory, base: Base, until: int) -> dict[str, list[Piece]]:
    """Return kind -> the files of its dataset, every one verified, for the iterations up to `until`."""
    return {kind: _pieces(run, base, kind, until) for kind in KINDS}


def _pieces(run: RunHistory, base: Base, kind: str, until: int) -> list[Piece]:
    parts = list(_parts(run, KINDS[kind][0], until))
    files = [
        Piece(name=f"iter-{part.iteration:02d}/part-{i:05d}.parquet", bytes=path.stat().st_size, source=path)
        for part in parts
        for i, path in enumerate(part.paths)
    ]
    return [*files, text_piece("README.md", _card(run, base, kind, parts))] if parts else []


def _parts(run: RunHistory, label: str, until: int) -> Iterator[_Part]:
    for t in range(1, until + 1):
        source, manifest = run.artifact(t, label), run.manifest(t, label)
        if source and manifest:
            source.folder()  # verifies every file
            yield _Part(iteration=t, manifest=manifest, paths=tuple(source.root / file.path for file in source.parts))


def _card(run: RunHistory, base: Base, kind: str, parts: list[_Part]) -> str:
    iterations = [part.iteration for part in parts]
    splits = [{"split": f"iter_{t:02d}", "path": f"iter-{t:02d}/*.parquet"} for t in iterations]
    fields = {
        "configs": [{"config_name": "default", "data_files": splits}],
        "tags": ["sparring", "self-play", "synthetic", "preference-optimization"],
        "source_datasets": datasets_of(run),
    }
    rows = (
        [t, part.manifest.rows["out"], counts_text(part.manifest.rows["dropped"]) or "0"]
        for t, part in zip(iterations, parts, strict=True)
    )
    lines = [
        *front(fields),
        f"# {kind} of run {escaped(run.name)}",
        "",
        f"{KINDS[kind][1]}. {_origin(base, parts)}",
        "",
        *table(["iteration", "rows", "dropped"], rows),
        "",
        "## Columns",
        "",
        *table(["column", "type"], ((field.name, field.type) for field in pq.read_schema(parts[0].paths[0]))),
        "",
        "## Limits",
        "",
        "Responses are unfiltered output of a language model: they may be false or offensive, and may carry text of "
        "the prompts. Terms of the prompts' dataset and of the base model bind them: the licence of the base is "
        f"{escaped(base.licence)}; that of the prompts was not looked up.",
        "",
        "## Lineage",
        "",
        *table(
            ["iteration", "fingerprint", "content"],
            ([t, p.manifest.fingerprint, p.manifest.content] for t, p in zip(iterations, parts, strict=True)),
        ),
    ]
    return "\n".join(lines) + "\n"


def _origin(base: Base, parts: list[_Part]) -> str:
    brought = [str(part.iteration) for part in parts if part.manifest.imported]
    made = f"Made by self-play of {escaped(base.name)} with sparring"
    if brought:
        return (
            f"{made}, but for iteration {', '.join(brought)}, which was imported: who wrote or rated it is not known."
        )
    return f"{made}; no human wrote or rated a response."
