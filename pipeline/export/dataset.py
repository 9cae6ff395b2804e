"""The responses and pairs of a run as datasets in the hub's layout: parquet as it is in the store, and a card."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from sparring.pipeline.export.base import Base
from sparring.pipeline.export.card import datasets_of
from sparring.pipeline.export.folder import DATASETS, Piece, text_piece
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
"""Name of a dataset -> label of the step that made it, and what it is."""


def pieces(run: RunHistory, base: Base, until: int) -> dict[str, list[Piece]]:
    """Return folder in the export -> the files of a dataset, every one verified, for the iterations up to `until`."""
    folders = {}
    for kind, (label, _) in KINDS.items():
        files: list[Piece] = []
        manifests: dict[int, Manifest] = {}
        for t in range(1, until + 1):
            source, manifest = run.artifact(t, label), run.manifest(t, label)
            if source and manifest:
                source.folder()  # verifies every file
                manifests[t] = manifest
                for i, part in enumerate(source.parts):
                    path = source.root / part.path
                    name = f"iter-{t:02d}/part-{i:05d}.parquet"
                    files.append(Piece(name=name, bytes=path.stat().st_size, source=path))
        if files:
            card = _card(run, base, kind, manifests, pq.read_schema(files[0].source))
            folders[f"{DATASETS}/{kind}"] = [*files, text_piece("README.md", card)]
    return folders


def _card(run: RunHistory, base: Base, kind: str, manifests: dict[int, Manifest], columns: pa.Schema) -> str:
    """Return the dataset's README.md; manifests: by iteration."""
    splits = [{"split": f"iter_{t:02d}", "path": f"iter-{t:02d}/*.parquet"} for t in manifests]
    fields = {
        "configs": [{"config_name": "default", "data_files": splits}],
        "tags": ["sparring", "self-play", "synthetic", "preference-optimization"],
        "source_datasets": datasets_of(run),
    }
    origin = f"Made by self-play of {escaped(base.name)} with sparring"
    imported = ", ".join(str(t) for t, manifest in manifests.items() if manifest.imported)
    if imported:
        origin += f", but for iteration {imported}, which was imported: who wrote or rated it is not known."
    else:
        origin += "; no human wrote or rated a response."
    lines = [
        *front(fields),
        f"# {kind} of run {escaped(run.name)}",
        "",
        f"{KINDS[kind][1]}. {origin}",
        "",
        *table(
            ["iteration", "rows", "dropped"],
            ([t, one.rows["out"], counts_text(one.rows["dropped"]) or "0"] for t, one in manifests.items()),
        ),
        "",
        "## Columns",
        "",
        *table(["column", "type"], ((field.name, field.type) for field in columns)),
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
            ([t, one.fingerprint, one.content] for t, one in manifests.items()),
        ),
    ]
    return "\n".join(lines) + "\n"
