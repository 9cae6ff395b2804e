"""What a run takes from outside: the policy, the encoder, the judges, the prompts, each with its content digest.

Embedded parts come out of ordinary packages; everything else is a local path. Nothing heavy is imported.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import stages.annotate
import stages.sample
from pipeline.artifact import content_digest, external
from pipeline.config import EncoderConfig, JudgeConfig, PolicyConfig, PromptsConfig
from pipeline.digests import cached_sha256
from pipeline.errors import ConfigError, DataError
from pipeline.job import File, Input
from stages.sample import embedded


class Sources:
    """Resolve configuration to inputs. Digests of large files are cached."""

    def policy(self, config: PolicyConfig) -> Input:
        """Return the base policy. An embedded one that is not prepared yet has its committed digest and no files."""
        if config.source == "embedded":
            return _embedded_policy()
        if config.source != "folder" or config.path is None:
            raise ConfigError(f"policy.source={config.source}: choose embedded or folder (with policy.path).")
        folder = Path(config.path).expanduser()
        check_policy_folder(folder)
        return _external("policy", folder)

    def encoder(self, config: EncoderConfig) -> Input:
        """Return the sentence encoder's folder."""
        if config.source == "embedded":
            return self.minilm()
        if config.path is None:
            raise ConfigError("encoder.path is not set; add encoder.path=<folder>, or use encoder=minilm.")
        return _external("encoder", Path(config.path).expanduser())

    def minilm(self) -> Input:
        """Return the embedded encoder."""
        return _external("encoder", embedded.encoder_folder())

    def judge(self, config: JudgeConfig) -> Input:
        """Return the folder of an oracle or second judge."""
        folder = Path(stages.annotate.__file__).parent / "judges" / config.kind
        return _external("judge", Path(config.path).expanduser() if config.path else folder)

    def prompts(self, config: PromptsConfig) -> Input:
        """Return the file of prompts."""
        if config.source == "starter":
            return _external("source", Path(stages.sample.__file__).parent / "starter.jsonl")
        if config.source != "file" or config.path is None:
            raise ConfigError(f"prompts.source={config.source}: choose starter or file (with prompts.path).")
        path = Path(config.path).expanduser()
        if not path.is_file():
            raise DataError(f"prompts.path={path}: there is no such file.")
        return _external("source", path)


@cache
def _external(role: str, path: Path) -> Input:
    return external(role, path, cached_sha256)


@cache
def _embedded_policy() -> Input:
    folder = embedded.place()
    if embedded.is_prepared():
        return _external("policy", folder)
    files = tuple(File(name=n, path=n, sha256=s, bytes=0) for n, s in embedded.POLICY_FILES.items())
    return Input(role="policy", root=folder, digest=content_digest(files), files=files)


def check_policy_folder(folder: Path) -> None:
    """DataError when `folder` is not a chat model in the transformers layout with safetensors weights."""
    if not folder.is_dir():
        raise DataError(f"policy.path={folder}: there is no such folder.")
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no config.json; a policy is a folder in the transformers layout.")
    if not list(folder.glob("*.safetensors")):
        raise DataError(
            f"{folder}: no *.safetensors; other weight formats are not read. Save the model with safetensors."
        )
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").is_file():
        raise DataError(
            f"{folder}: no tokenizer (tokenizer.json or tokenizer.model); copy the model's tokenizer there."
        )
    if not _has_chat_template(folder):
        raise DataError(
            f"{folder}: no chat template; add chat_template.jinja (or chat_template in tokenizer_config.json). "
            "Base models without one cannot be played as chat models."
        )


def check_context(policy: Input, longest: int) -> None:
    """ConfigError when prompt plus response (`longest` tokens) do not fit the policy's context."""
    settings = policy.root / "config.json"
    context = _json(settings).get("max_position_embeddings") if settings.is_file() else None
    if context is not None and longest > context:
        raise ConfigError(
            f"prompts.max_tokens + sampler.max_tokens = {longest} exceeds the policy's context of {context} tokens "
            f"({settings}); lower one of the two."
        )


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(_json(settings).get("chat_template"))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: not complete JSON ({error}); copy the model folder again.") from None
    return content if isinstance(content, dict) else {}
