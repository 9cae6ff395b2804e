"""The wheel of this checkout, built from a copy: what an older build has left beside it is not packed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def wheel(folder: Path) -> tuple[Path, Path]:
    """Build it under `folder`; return it, and the copy that it was built from."""
    source, out = folder / "source", folder / "wheels"
    for name in ("pipeline", "stages", "conf", "sparring", "tests"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    local = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *local, str(source)], check=True)
    (found,) = out.glob("sparring-*.whl")
    return found, source
