"""Where a run enters midway: artifacts of the store that iteration 1 takes in place of its own samples, or pairs.

Their policy and prompts must be those of the run: token ids mean nothing to another tokenizer, and what one choice of
prompts holds out another may train on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sparring.pipeline.config.model import Config
from sparring.pipeline.store.manifest import Artifact, Manifest, find
from sparring.pipeline.store.remote import opened
from sparring.stages.errors import DataError
from sparring.stages.fingerprint import artifact_name
from sparring.stages.step import Input

AGAIN = "import it again with the overrides of this run (`sparring import`)."


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished artifact that stands where a step of iteration 1 would."""

    arm: str
    label: str
    """sample or pairs: that of the step."""
    manifest: Manifest
    source: Input


def entries(arm: str, config: Config, prompts: str, policy: str) -> list[Entry]:
    """Return what an arm enters with, samples first; DataError when it is not there or does not fit.

    prompts: the fingerprint of the step; policy: the digest of the base policy.
    """
    chosen = config.entry
    if not chosen.pairs and not chosen.samples:
        return []
    store = opened(config.paths.store)
    try:
        if chosen.pairs:
            imported = _pairs(arm, store, chosen.pairs)
        else:
            imported = [_entry(arm, "sample", *find(store, str(chosen.samples)))]
        samples = imported[0].manifest
        if samples.inputs.get("policy", {}).get("digest") != policy:
            raise DataError(f"{samples.name} was tokenized for another policy; {AGAIN}")
        if samples.inputs.get("prompts", {}).get("name") != prompts:
            raise DataError(f"{samples.name} was made beside other prompts, of which others are held out; {AGAIN}")
    except DataError as error:
        key = f"entry.pairs={chosen.pairs}" if chosen.pairs else f"entry.samples={chosen.samples}"
        raise DataError(f"{key}: {error}") from None
    return imported


def _pairs(arm: str, store: Path, name: str) -> list[Entry]:
    """Return the samples whose bytes the pairs were made of, and the pairs."""
    pairs = _entry(arm, "pairs", *find(store, name))
    made_of = pairs.manifest.inputs["samples"]
    recorded = artifact_name("sample", made_of["name"])
    for path in sorted(store.glob("sample-*"), key=lambda path: (path.name != recorded, path.name)):
        try:
            artifact, manifest = find(store, path.name)
        except DataError:  # not finished, or corrupt
            continue
        if manifest.content == made_of["digest"]:
            return [_entry(arm, "sample", artifact, manifest), pairs]
    raise DataError(f"the samples it was made of are not in {store} any more; {AGAIN}")


def _entry(arm: str, label: str, artifact: Artifact, manifest: Manifest) -> Entry:
    if damaged := next(artifact.damaged_files(manifest), None):
        raise DataError(f"{damaged}; {AGAIN}")
    if why := artifact.dropped(manifest):
        raise DataError(f"the files of {manifest.name} were dropped ({why}); name another artifact, or {AGAIN}")
    source = artifact.as_input("samples" if label == "sample" else label, manifest)
    return Entry(arm=arm, label=label, manifest=manifest, source=replace(source, root=source.root.absolute()))
