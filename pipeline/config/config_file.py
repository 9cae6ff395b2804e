"""config.yaml in the folder of a run, read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sparring.pipeline.config.groups import CONF
from sparring.pipeline.runs.config import DiagnosticsConfig
from sparring.stages import fields
from sparring.stages.errors import DataError


def config_of(folder: Path) -> dict[str, Any]:
    """Return the configuration that the run in `folder` wrote down, {} without one that can be read."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException):
        return {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def diagnostics_of(folder: Path) -> DiagnosticsConfig:
    """Return the thresholds that the run in `folder` was begun with, those of conf/ where it recorded none."""
    path = folder / "config.yaml"
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
        recorded = dict(content.get("diagnostics", {}))
        defaults: Any = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml").diagnostics)
        chosen = {key: recorded.get(key, default) for key, default in defaults.items()}
        return fields.validator(DiagnosticsConfig).validate_python(chosen)
    except (ValueError, TypeError, AttributeError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: cannot be read ({first}); the same `sparring run` again writes it.") from None
