"""Resolves pyproject.toml into the two committed locks, requirements/cpu.txt and requirements/cuda.txt.

    make lock                    keeps every version that still fits
    make lock ARGS=--upgrade     takes the newest that fit

The CUDA lock resolves on any machine; it installs on one with a GPU.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from scripts.indexes import install_environment, pip_settings, torch_index, uv_environment
from scripts.install import pinned_uv

ROOT = Path(__file__).parents[1]
OVERRIDES = {"cpu": ["overrides.txt", "overrides-cpu.txt"], "cuda": ["overrides.txt"]}


def compile_command(uv: Path, hardware: str, arguments: list[str]) -> list[str]:
    """The `uv pip compile` call of one lock: whole, for Linux on x86_64, free of indexes and paths."""
    overrides = [f"--override=requirements/{name}" for name in OVERRIDES[hardware]]
    target = ["--python-version=3.11", "--python-platform=x86_64-manylinux_2_28"]
    what = [f"--extra={hardware}", "--group=dev", "--group=embedded"]
    silent = ["--quiet", "--no-header", "--no-emit-index-url", "--no-emit-find-links"]
    lock = f"--output-file=requirements/{hardware}.txt"
    return [
        str(uv),
        "pip",
        "compile",
        "pyproject.toml",
        *what,
        *target,
        *overrides,
        *silent,
        lock,
        *arguments,
    ]


def lock_environment(python: Path, hardware: str) -> dict[str, str]:
    """uv's environment, less pip's extra indexes: a mirror that holds half the wheels would change the lock."""
    settings = pip_settings(python)
    settings.pop("extra-index-url", None)
    return uv_environment(settings, torch_index(hardware))


def main(arguments: list[str]) -> int:
    """Writes both locks with the pinned uv, out of an environment of its own."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python, uv = Path(folder, "bin/python"), Path(folder, "bin/uv")
        install = [str(python), "-m", "pip", "install", "--quiet", pinned_uv(ROOT)]
        subprocess.run(install, check=True, env=install_environment())
        for hardware in OVERRIDES:
            command = compile_command(uv, hardware, arguments)
            if code := subprocess.run(command, cwd=ROOT, env=lock_environment(python, hardware)).returncode:
                print(f"lock: requirements/{hardware}.txt was not resolved and is as it was", file=sys.stderr)
                return code
            print(f"lock: requirements/{hardware}.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
