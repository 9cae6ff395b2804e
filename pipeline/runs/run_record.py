"""The record of a run, run.json: the fingerprint planned for each step of each iteration, which of them are made, and
links into the store.

The artifacts are the truth; a lost record is written again by the next `sparring run`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring.pipeline.store.files import write_text
from sparring.pipeline.store.manifest import Manifest
from sparring.stages.errors import DataError

Key = tuple[int, str]
"""(iteration, label)."""


def read(folder: Path) -> dict[str, Any]:
    """Return the record of the run in `folder`, {} when there is none that can be read."""
    try:
        content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if _is_record(content) else {}


def records(folder: Path) -> list[Path]:
    """Return the paths of the records of a run, its own first, then those of its arms."""
    return [*folder.glob("run.json"), *sorted(folder.glob("*/run.json"))]


def checked(folder: Path) -> dict[str, Any]:
    """Return the record of the run in `folder`; DataError when it is not there, or not what `sparring run` writes."""
    content = read(folder)
    if not {"store", "overrides", "steps"} <= content.keys():
        path = folder / "run.json"
        raise DataError(f"{path}: no record of a run, or a damaged one; `sparring run` writes it again.")
    return content


def _is_record(content: Any) -> bool:
    """Return whether the content has the types that `begin` and `note` write."""
    try:
        steps = [entry for row in content.get("steps", {}).values() for entry in row.values()]
        planned = [name for row in content.get("planned", {}).values() for name in row.values()]
        lists = [content.get("overrides", []), list(content.get("pins", {}).values()), planned]
        lists.append([entry[name] for entry in steps for name in ("fingerprint", "content") if name in entry])
        numbers = [int(t) for name in ("steps", "planned") for t in content.get(name, {})]
        named = all("fingerprint" in entry for entry in steps) and bool(content.get("store", "store"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    texts = all(isinstance(one, list) and all(isinstance(text, str) for text in one) for one in lists)
    return named and texts and isinstance(content.get("store", ""), str) and min(numbers, default=0) >= 0


def begin(
    folder: Path,
    planned: Mapping[Key, str],
    config: str,
    overrides: Sequence[str],
    store: str,
    pins: Mapping[str, str],
) -> None:
    """Write the configuration; forget the steps of another configuration, and keep those of more iterations of this.

    planned: (iteration, label) -> fingerprint of the plan that begins. pins: the commits of the hub's revisions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", config)
    old = read(folder).get("steps", {})
    known = {(int(t), label): entry["fingerprint"] for t, row in old.items() for label, entry in row.items()}
    if any(planned.get(key, name) != name for key, name in known.items()):
        old = {}
        for path in folder.glob("iter-*"):
            shutil.rmtree(path)
    rows: dict[str, dict[str, str]] = {}
    for (t, label), name in sorted(planned.items()):
        rows.setdefault(f"{t:02d}", {})[label] = name
    content = {"overrides": list(overrides), "store": store, "pins": dict(pins), "planned": rows, "steps": old}
    write_text(folder / "run.json", json.dumps(content, indent=1))


def note(folder: Path, store: Path, key: Key, name: str, manifest: Manifest) -> None:
    """Note that step `key` is the artifact `name` and link it under iter-NN."""
    t, label = key
    record = read(folder)
    row = record.setdefault("steps", {}).setdefault(f"{t:02d}", {})
    entry = {"fingerprint": manifest.fingerprint, "content": manifest.content}
    if row.get(label) != entry:
        row[label] = entry
        write_text(folder / "run.json", json.dumps(record, indent=1))
    link, target = folder / f"iter-{t:02d}" / name, store.absolute() / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.resolve() == target.resolve():
        return
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(os.path.relpath(target, link.parent.absolute()))
