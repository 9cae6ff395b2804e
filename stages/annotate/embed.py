"""The step `embed`: similarity of the K responses to a prompt, the cosine of their sentence embeddings.

White space around a text is ignored: equal
texts have similarity exactly 1, and each text is embedded once per part. An empty response has similarity 0 with every
text but another empty one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparring.stages import loaded
from sparring.stages.annotate.config import EmbedSettings
from sparring.stages.annotate.gate import off_diagonals
from sparring.stages.annotate.rows import histogram, matrix, place, rows_by_id, total
from sparring.stages.annotate.text_encoder import TextEncoder
from sparring.stages.step import Job, Part, Shard

EMBEDDINGS_SCHEMA = pa.schema([("id", pa.string()), ("similarity", pa.list_(pa.float32())), ("chunks", pa.int32())])


def prepare(job: Job) -> None:
    """Import the encoder's library, which takes longer than loading a small encoder."""
    import sentence_transformers  # noqa: F401


class Embedder:
    """Embeds a part of `samples`; the encoder is loaded once."""

    def __init__(self, job: Job[EmbedSettings]) -> None:
        device = "cuda" if job.workers.gpus else "cpu"
        encoder, window = job.inputs["encoder"], job.settings.encoder.window
        self.encoder = loaded.kept(
            "encoder",
            (encoder.root, encoder.digest, window, device),
            lambda: TextEncoder(encoder.folder(), window, device),
            small=loaded.is_small([encoder]),
        )
        self.samples = job.inputs["samples"]

    def __call__(self, shard: Shard) -> Part:
        responses = {
            row_id: [response["text"].strip() for response in row["responses"]]
            for row_id, row in rows_by_id(self.samples, shard.index, ["responses"]).items()
        }
        texts = list(dict.fromkeys(text for row in responses.values() for text in row if text))
        vectors, windows = self.encoder(texts) if texts else (np.zeros((0, 1)), [])
        index = {text: i for i, text in enumerate(texts)}
        extra = {text: n - 1 for text, n in zip(texts, windows, strict=True)} | {"": 0}
        rows = []
        for row_id, row in responses.items():
            units = np.stack([vectors[index[text]] if text else np.zeros(vectors.shape[1]) for text in row])
            cosines = similarity(units, row)
            cosines = matrix(cosines.ravel(), cosines.shape, "similarity", place(self.samples, shard.index, row_id))
            chunks = sum(extra[text] for text in row)
            rows.append({"id": row_id, "similarity": cosines.astype(np.float32).ravel(), "chunks": chunks})
        every = [text for row in responses.values() for text in row]
        stats = {
            "responses": float(len(every)),
            "embedded": float(len(texts)),
            "chunked": float(sum(extra[text] > 0 for text in every)),
            "chunks": float(sum(extra[text] for text in every)),
            "empty": float(every.count("")),
        }
        return Part(table=pa.Table.from_pylist(rows, schema=EMBEDDINGS_SCHEMA), rows_in=len(rows), stats=stats)


def similarity(units: NDArray[np.float64], texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the cosines (K, K) of unit vectors (K, d): symmetric, in [-1, 1], exactly 1 where the texts are equal."""
    above = np.triu(np.clip(units @ units.T, -1.0, 1.0), 1)
    equal = np.array([[a == b for b in texts] for a in texts])
    return np.where(equal, 1.0, above + above.T)


def finish(job: Job, tables: Iterator[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise; `similarity` is the histogram of all off-diagonal similarities, each pair once."""
    shape = histogram((row for table in tables for row in off_diagonals(table, "similarity")), -1.0, 1.0)
    return {
        "n": sum(part["rows_out"] for part in parts),
        "similarity_mean": shape["mean"],
        "similarity": shape,
        **{name: int(total(parts, name)) for name in ("responses", "embedded", "chunked", "chunks", "empty")},
    }
