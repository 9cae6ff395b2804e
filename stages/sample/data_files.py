"""The files that a path stands for: itself, a folder of files of one format, or a dataset that `save_to_disk` wrote."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparring.stages.errors import ConfigError, DataError
from sparring.stages.sample.texts import SPLITS, json_fault, suffix_of

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?")
"""The name of a file that holds a part of a split: test-00000-of-00002."""


def data_files(path: Path, split: str | None, key: str) -> list[Path]:
    """Return the files that `path` stands for: itself, or those of a folder, in order; of splits the chosen one.

    key: what chooses the split, for messages.
    """
    if not path.is_dir():
        check_file(path)
        if split is not None:
            raise ConfigError(f"{key}={split}: {path} is a file, which has no splits; leave {key} out.")
        return [path]
    if (path / "dataset_dict.json").is_file():
        names = _saved_json(path / "dataset_dict.json").get("splits")
        plain = [name for name in names if _is_plain(name)] if isinstance(names, list) else []
        splits = {name: path / name for name in plain}
        return data_files(splits[_chosen(path, list(splits), split, key)], None, key)
    if (path / "state.json").is_file():
        if split is not None:
            raise ConfigError(f"{key}={split}: {path} is one dataset, which has no splits; leave {key} out.")
        return _saved(path)
    return _folder(path, split, key)


def check_file(path: Path) -> None:
    """DataError where there is no file; a pipe, which would be waited for and can be read once, is none."""
    if not path.is_file():
        what = "is a pipe, a socket or a device; write the rows to a file" if path.exists() else "there is no such file"
        raise DataError(f"{path}: {what}.")


def _chosen(path: Path, splits: Sequence[str], split: str | None, key: str) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        which = f"{key}={split}: " if split else ""
        hint = f"choose one: {key}={splits[0]}" if splits else "save it again"
        raise ConfigError(f"{which}{path}: has the splits {', '.join(splits) or 'none'}; {hint}.")
    return split


def _saved(path: Path) -> list[Path]:
    """Return the Arrow files of a dataset that `save_to_disk` wrote."""
    state = _saved_json(path / "state.json")
    listed = state.get("_data_files")
    named = listed if isinstance(listed, list) else []
    names = [str(one["filename"]) for one in named if isinstance(one, dict) and "filename" in one]
    if state.get("_indices_data_files") or not all(map(_is_plain, names)):
        raise DataError(f"{path}: state.json has a layout that is not read; save the dataset again with save_to_disk.")
    for name in names:
        if not (path / name).is_file():
            raise DataError(f"{path}: {name} is missing, which state.json names; copy all of the folder again.")
    if not names:
        raise DataError(f"{path}: holds no rows; give a dataset with at least one.")
    return [path / name for name in names]


def _is_plain(name: Any) -> bool:
    """Return whether a name is that of a file in the same folder."""
    return isinstance(name, str) and Path(name).name == name


def _saved_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not complete JSON ({json_fault(error)}); copy all of the folder again.") from None
    return values if isinstance(values, dict) else {}


def _folder(path: Path, split: str | None, key: str) -> list[Path]:
    """Return the data files of a folder (or of its `data`), which must be of one format.

    A file's name has its split, as `test-00000-of-00002.parquet` or `test.jsonl` have; others are of `train`.
    """
    listed: list[Path] = []
    for place in (path, path / "data"):
        every = sorted(place.iterdir()) if place.is_dir() else []
        listed = listed or [
            one for one in every if one.is_file() and suffix_of(one) in FORMATS and one.name[0] not in "._"
        ]
    if len({suffix_of(one) for one in listed}) > 1:  # a dataset_info.json beside the data is none
        listed = [one for one in listed if suffix_of(one) != ".json"]
    kinds = Counter(map(suffix_of, listed))
    if len(kinds) != 1:
        what = "holds files of " + " and ".join(sorted(kinds)) if kinds else f"holds no {', '.join(FORMATS)} file"
        raise DataError(f"{path}: {what}; give one file, or a folder with files of one format.")
    splits: dict[str, list[Path]] = {}
    for one in listed:
        stem = one.name.partition(".")[0]
        shard = SHARD.fullmatch(stem)
        splits.setdefault(shard["split"] if shard else stem if stem in SPLITS else "train", []).append(one)
    if split is None and len(splits) == 1:
        return listed
    return splits[_chosen(path, sorted(splits), split, key)]
