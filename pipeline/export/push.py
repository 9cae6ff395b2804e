"""A push to the hub: off by default, listed first, asked for; a repository that it makes is private."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from sparring.pipeline.export.folder import DATASETS
from sparring.stages.errors import ConfigError, DataError, first_line


def check(repo: str) -> None:
    """Refuse what cannot be pushed before anything is written; asks no network."""
    from huggingface_hub import constants, errors, get_token
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except errors.HFValidationError as error:
        raise ConfigError(f"--push {repo}: {first_line(error)}") from None
    if repo.count("/") != 1:
        raise ConfigError(f"--push {repo}: write OWNER/NAME.")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("--push: HF_HUB_OFFLINE is set; unset it, or leave --push out.")
    if get_token() is None:
        raise ConfigError("--push: no token for the hub; set HF_TOKEN, or run `hf auth login`.")


def confirm(repos: Iterable[str], yes: bool) -> bool:
    """Ask on a terminal; without one only --yes will do."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError("--push asks before it sends anything, and there is no terminal to ask on; add --yes.")
    try:
        return input(f"send this to {', '.join(repos)}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def repositories(repo: str, folders: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return folder in the export -> (type, repository): the model's is "", a dataset has a repository of its own."""
    return {folder: ("dataset", f"{repo}-{Path(folder).name}") if folder else ("model", repo) for folder in folders}


def push(export: Path, repositories: dict[str, tuple[str, str]]) -> list[str]:
    """Upload the export and return the pages; DataError says how to go on where the hub refuses."""
    import httpx2  # the hub library's own client
    from huggingface_hub import errors

    pages = []
    for inside, (kind, repo) in repositories.items():
        folder = export / inside
        try:
            pages.append(_upload(folder, kind, repo))
        except (errors.HfHubHTTPError, httpx2.HTTPError, OSError) as error:
            words = ["hf", "upload", repo, str(folder), ".", "--repo-type", kind]
            raise DataError(
                f"{kind} {repo}: the hub did not take it ({first_line(error)}). The export is complete; to send it: "
                f"{shlex.join(words)}"
            ) from None
    return pages


def _upload(folder: Path, kind: str, repo: str) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    page = api.create_repo(repo, repo_type=kind, private=True, exist_ok=True)
    api.upload_folder(
        repo_id=repo,
        repo_type=kind,
        folder_path=folder,
        ignore_patterns=[f"{DATASETS}/**"],
        commit_message="Exported by sparring",
    )
    return str(page)
