"""Runs a benchmark part by part. Rows are printed and written when a part ends; a part that fails is reported with its
log, and the other parts still run.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks._process import ChildFailed
from benchmarks._table import Row, print_rows, write_rows

Part = Callable[[Path], Sequence[Row]]
"""An empty folder to work in -> the rows of a part."""


def run_parts(title: str, parts: Mapping[str, Part], file: Path | None) -> int:
    """Run the parts; return 0, or 1 when one of them failed. file: where all rows so far are written as JSON."""
    rows: list[Row] = []
    failed: list[str] = []
    for name, part in parts.items():
        folder = Path(tempfile.mkdtemp(prefix=f"sparring-bench-{name}-"))
        try:
            found = part(folder)
        except Exception as error:
            log = Path(f"benchmark-{title}-{name}.log".replace(" ", "-")).absolute()  # outlives the part's folder
            stderr = error.stderr if isinstance(error, ChildFailed) else ""
            log.write_text(f"{stderr}\n{''.join(traceback.format_exception(error))}", encoding="utf-8")
            failed.append(f"{title}: the part {name} failed: {error} (log: {log})")
            print(failed[-1], file=sys.stderr, flush=True)
        else:
            rows += found
            print_rows(f"{title}: {name}", found)
            write_rows(rows, file)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if failed:
        print(f"{len(failed)} of {len(parts)} parts failed:", *failed, sep="\n", file=sys.stderr)
    return int(bool(failed))
