"""The engine for servers, as its tests make it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparring.stages.sample.engine_server import ServerEngine
from tests.stages.sample.questions import engine_settings

NAME = "sparring-1a2b3c4d"


def engine(folder: Path, *urls: str, **changes: Any) -> ServerEngine:
    return ServerEngine(folder, engine_settings("server", **{"policy_name": NAME, "urls": urls, **changes}))
