"""Models and datasets of the Hugging Face hub, pinned to a commit, downloaded when a run needs them.

A revision such as `main` is resolved once and written down (`pins`), so that a run goes on with what it began with.
The commit is the identity of what comes from here. The cache is the hub's own (HF_HOME); only safetensors weights,
tokenizers, configurations and data files are fetched, and no code.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sparring.pipeline.store.files import check_folder, write_text
from sparring.stages.digests import cache_folder, cached_sha256
from sparring.stages.errors import ConfigError, DataError, HubSilent, first_line
from sparring.stages.step import File, Input

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
MODEL_FILES = ("*.safetensors", "*.json", "tokenizer.model", "spm.model", "*.jinja", "merges.txt")
DATA_FILES = ("*.parquet", "*.jsonl", "*.csv", "README.md")


class Hub:
    """Looks things up; `pins` maps `model:repo@revision` to a commit and grows.

    assume: where the hub does not answer, take a revision for a commit that nothing was made of yet, and say so in
    `assumed`; for plans that are only shown.
    """

    def __init__(self, pins: dict[str, str] | None = None, assume: bool = False) -> None:
        self.pins, self.assume = dict(pins or {}), assume
        self.assumed: list[str] = []

    def model(self, repo: str, revision: str) -> Input:
        """Return the model's folder; without files while it is not downloaded."""
        commit = self.commit("model", repo, revision)
        folder = _downloaded("model", repo, commit)
        digest = _digest("model", repo, commit)
        if folder is None:
            return Input(role="policy", root=Path(), digest=digest, wanted=("model", repo, commit))
        paths = sorted(path for path in folder.resolve().iterdir() if path.is_file())
        selected = [path for path in paths if any(fnmatch.fnmatch(path.name, pattern) for pattern in MODEL_FILES)]
        return Input(role="policy", root=folder, digest=digest, files=_files(folder, selected))

    def dataset(self, repo: str, revision: str, name: str | None, split: str) -> Input:
        """Return the files of a split; without files while it is not downloaded."""
        commit = self.commit("dataset", repo, revision)
        folder = _downloaded("dataset", repo, commit)
        digest = _digest("dataset", repo, commit, name or "default", split)
        if folder is None:
            return Input(role="source", root=Path(), digest=digest, wanted=("dataset", repo, commit))
        return Input(role="source", root=folder, digest=digest, files=_files(folder, split_files(folder, name, split)))

    def downloaded_folder(self, kind: str, repo: str, revision: str) -> Path | None:
        """Return the folder of what was downloaded, without asking anybody; None when there is none."""
        return _downloaded(kind, repo, self.pins.get(f"{kind}:{repo}@{revision}", revision))

    def commit(self, kind: str, repo: str, revision: str) -> str:
        """Return the commit of a revision: itself, the pinned one, the hub's, or offline that of the cache."""
        key = f"{kind}:{repo}@{revision}"
        if COMMIT.fullmatch(revision) or key in self.pins:
            return self.pins.get(key, revision)
        try:
            self.pins[key] = _resolve(kind, repo, revision, ask=not self.assumed)
        except HubSilent as error:
            if not self.assume:
                raise
            self.assumed.append(str(error))
        return self.pins.get(key, revision)


def check_cache() -> None:
    """ConfigError where nothing can be written into the hub's cache."""
    from huggingface_hub import constants

    check_folder("HF_HUB_CACHE", Path(constants.HF_HUB_CACHE))


def split_files(folder: Path, name: str | None, split: str) -> list[Path]:
    """Return the data files of a split of a folder in the hub's layout, as the datasets library finds them."""
    import datasets

    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(str(folder.resolve()), name=name)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        try:
            names = list(datasets.get_dataset_config_names(str(folder)))
        except (ValueError, OSError, datasets.exceptions.DatasetsError):
            names = []
        if name not in names and len(names) > 1:
            raise ConfigError(
                f"prompts.subset={name}: {folder} has several configurations; choose one of {', '.join(names)}."
            ) from None
        raise DataError(f"{folder}: no dataset in the hub's layout ({first_line(error)}).") from None
    splits = builder.config.data_files or {}
    if split not in splits:
        raise ConfigError(f"prompts.split={split}: {folder} has {', '.join(map(str, splits)) or 'none'}.")
    return [Path(str(path)) for path in splits[split]]


def download(kind: str, repo: str, commit: str) -> Path:
    """Fetch what is missing of a repository at a commit; DataError says what to do when it cannot be had."""
    from huggingface_hub import constants, snapshot_download

    patterns = (*MODEL_FILES, "README.md") if kind == "model" else DATA_FILES
    folder = _ask_hub(
        kind,
        repo,
        commit,
        lambda: snapshot_download(
            repo,
            repo_type=kind,
            revision=commit,
            allow_patterns=list(patterns),
            ignore_patterns=["original/*", "consolidated*"],
            local_files_only=constants.HF_HUB_OFFLINE,
        ),
    )
    marker = _marker(kind, repo, commit)
    marker.parent.mkdir(parents=True, exist_ok=True)
    write_text(marker, str(folder))
    return Path(folder)


ARCHITECTURE_S = 3.0
"""Seconds that the hub has to answer for what a plan can do without."""


def model_config(repo: str, commit: str) -> Path | None:
    """Return a model's config.json, out of the hub's cache or from the hub; None where neither has it to give."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            _ask_hub(
                "model",
                repo,
                commit,
                lambda: hf_hub_download(repo, "config.json", revision=commit, etag_timeout=ARCHITECTURE_S),
            )
        )
    except (ConfigError, DataError):
        return None


def download_missing(inputs: Iterable[Input]) -> bool:
    """Download the inputs that are not here yet; return whether there were any."""
    missing = [source.wanted for source in inputs if source.wanted]
    for kind, repo, commit in missing:
        print(f"downloading the {kind} {repo} at {commit[:12]} (once)", file=sys.stderr)
        download(kind, repo, commit)
    return bool(missing)


def data_file(kind: str, repo: str, name: str) -> Path:
    """Return one file of the main branch of a dataset or space; DataError when it cannot be had.

    Its bytes are its identity.
    """
    from huggingface_hub import hf_hub_download

    return Path(_ask_hub(kind, repo, "main", lambda: hf_hub_download(repo, name, repo_type=kind)))


def cached_file(kind: str, repo: str, name: str) -> Path | None:
    """Return what `data_file` has fetched before, without asking anybody; None when it is not here."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, repo_type=kind)
    return Path(found) if isinstance(found, str) else None


def local_dataset(folder: Path, name: str | None, split: str) -> Input:
    """Return the files of a split of a local folder, named by their digests."""
    files = _files(folder, split_files(folder, name, split))
    content = hashlib.sha256("".join(f.sha256 for f in files).encode()).hexdigest()
    return Input(role="source", root=folder.resolve(), digest=content, files=files)


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(("hub", *words)).encode()).hexdigest()


def _marker(kind: str, repo: str, commit: str) -> Path:
    return cache_folder() / "hub" / f"{kind}--{repo.replace('/', '--')}@{commit}"


def _downloaded(kind: str, repo: str, commit: str) -> Path | None:
    """Return the folder of a download that was completed, None without."""
    try:
        folder = Path(_marker(kind, repo, commit).read_text(encoding="utf-8"))
    except OSError:
        return None
    return folder if folder.is_dir() else None


def _files(folder: Path, paths: Sequence[Path]) -> tuple[File, ...]:
    """Return paths in a folder as files; large ones are links into the hub's cache, where sha256 is their name."""
    root, files = folder.resolve(), []
    for path in paths:
        name, blob = str(path.absolute().relative_to(root)), path.resolve().name
        sha256 = blob if SHA256.fullmatch(blob) else cached_sha256(path)
        files.append(File(name=name, path=name, sha256=sha256, bytes=path.stat().st_size))
    return tuple(files)


def _resolve(kind: str, repo: str, revision: str, ask: bool) -> str:
    """Return the commit of a branch: the hub's, or the one that its cache last saw where the hub does not answer."""
    from huggingface_hub import HfApi, constants

    cached = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}" / "refs" / revision
    ask = ask and not constants.HF_HUB_OFFLINE
    if not ask and not cached.is_file():
        why = "and HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "and the hub does not answer"
        raise HubSilent(f"{kind} {repo}: revision {revision} is not in the hub's cache, {why}.")
    try:
        if ask:
            info = _ask_hub(kind, repo, revision, lambda: HfApi().repo_info(repo, repo_type=kind, revision=revision))
            return str(info.sha)
    except DataError:
        if not cached.is_file():
            raise
    return cached.read_text(encoding="utf-8").strip()


def _ask_hub(kind: str, repo: str, revision: str, question: Callable[[], Any]) -> Any:
    """Return the hub's answer, or say in one line why there is none."""
    import httpx2  # the hub library's own client
    from huggingface_hub import errors

    page = f"https://huggingface.co/{'' if kind == 'model' else f'{kind}s/'}{repo}"
    try:
        return question()
    except errors.GatedRepoError:
        raise DataError(f"{kind} {repo} asks for its licence: accept it at {page} and set HF_TOKEN.") from None
    except errors.RevisionNotFoundError:
        raise DataError(f"{kind} {repo} has no revision {revision}; see {page}/commits.") from None
    except errors.RepositoryNotFoundError:
        raise DataError(f"{kind} {repo} is not on the hub, or is private: check the name, or set HF_TOKEN.") from None
    except errors.HFValidationError as error:
        raise ConfigError(f"{kind} {repo}: {first_line(error)}") from None
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise HubSilent(
            f"{kind} {repo}@{revision} cannot be had from the hub ({first_line(error)}). Check the network, "
            "or give a local folder of the same layout."
        ) from None
