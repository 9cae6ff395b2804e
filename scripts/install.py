"""Sets `.venv` up from a committed lock; `make setup` calls it, with a Python 3.11 and its own library alone.

    make setup                   the lock of this machine's hardware
    make setup HARDWARE=cpu      that lock, whatever there is

The lock names exact versions, so it is installed without resolving (`--no-deps`): by uv, or by pip, which is
slower, where there is no uv. Then every engine is imported once: that shows that it works, and compiles the
bytecode of what it needs (8,000 of 29,000 files; vllm takes 17 s to import without it, 7 s with it).

The stamp `.venv/.sparring-setup-HARDWARE` says that all of it is done. A set-up that was cut off leaves a
mark, and the next one begins anew: an installer that was stopped may leave half a package that looks whole.
A `.venv` with neither was made by someone else and is added to.
"""

import argparse
import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from scripts.indexes import install_environment, pip_settings, torch_index, uv_environment

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv"
MARK = VENV / ".sparring-unfinished"
LOG = VENV / "setup.log"
NEEDED_GB = {"cpu": 6, "cuda": 20}
LAST_LINES = 12
INPUTS = ["pyproject.toml", "requirements/cpu.txt", "requirements/cuda.txt"]
LISTING = """
from importlib.metadata import distributions
for dist in distributions():
    print(f"{dist.name}=={dist.version}")
"""
ENGINES = """
import deepspeed, hydra, ray.train.torch, sentence_transformers
from transformers import LlamaConfig
from trl import DPOTrainer
from vllm import LLM, SamplingParams
"""


class SetupError(Exception):
    """One message: what went wrong and what to do."""


def pinned_uv(root: Path) -> str:
    """The requirement `uv==…` of the development group."""
    groups = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    return next(requirement for requirement in groups["dev"] if requirement.startswith("uv=="))


def detect_hardware() -> str:
    """`cuda` where nvidia-smi lists a GPU, else `cpu`."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "cuda" if listing.returncode == 0 and "GPU " in listing.stdout else "cpu"


def check_machine(hardware: str) -> None:
    """Stops where the locks do not fit: another system, or a disk too small."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        here = f"{platform.system()} on {platform.machine()}"
        raise SetupError(f"the locks are for Linux on x86_64, this is {here}: use a container of it")
    free, needed = shutil.disk_usage(ROOT).free / 1e9, NEEDED_GB[hardware]
    if free < needed and not VENV.exists():
        raise SetupError(f"{ROOT} has {free:.1f} GB free, the set-up takes up to {needed}: make room there")


@contextmanager
def alone() -> Iterator[None]:
    """Holds the environment's folder: a second set-up of it waits here."""
    VENV.mkdir(exist_ok=True)
    handle = os.open(VENV, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this folder")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_done(stamp: Path, inputs: list[Path]) -> bool:
    """Whether the stamp is there and no input is newer."""
    return stamp.exists() and all(stamp.stat().st_mtime >= path.stat().st_mtime for path in inputs)


def empty_if_unfinished() -> None:
    """Takes everything but the mark out of an environment whose set-up was cut off."""
    if not MARK.exists():
        return
    say("the last set-up was cut off: beginning anew")
    for path in VENV.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != MARK:
            path.unlink()


def say(text: str) -> None:
    """A line of progress, with the seconds since the start."""
    print(f"[{time.monotonic() - START:4.0f} s] {text}", flush=True)


def run(command: Sequence[str], env: Mapping[str, str], doing: str) -> None:
    """Runs a command in the repository; its output goes to the log, its end is in the error."""
    if (code := run_code(command, env)) != 0:
        last = "\n".join(LOG.read_text(errors="replace", encoding="utf-8").splitlines()[-LAST_LINES:])
        raise SetupError(f"{doing} failed (exit {code}); all of it is in {LOG}\n\n{last}\n")


def run_code(command: Sequence[str], env: Mapping[str, str]) -> int:
    """As `run`, giving the exit code; what is downloaded is shown."""
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            errors="replace",
        )
        for line in process.stdout or ():
            log.write(line)
            if line.strip().startswith("Downloading"):
                say(line.strip())
    return process.wait()


def make_environment() -> Path:
    """The Python of `.venv`, which is created if it is not there."""
    python = VENV / "bin" / "python"
    if not python.exists():
        MARK.touch()
        doing = "creating .venv (on Debian and Ubuntu it takes the package python3.11-venv)"
        run([sys.executable, "-m", "venv", str(VENV)], install_environment(), doing)
    check = "import sys, pip; sys.exit(sys.version_info[:2] != (3, 11))"
    if subprocess.run([python, "-c", check], capture_output=True).returncode != 0:
        raise SetupError(f"{VENV} is broken or not of Python 3.11: remove it")
    return python


def missing(lock: str, installed: str) -> list[str]:
    """The requirements of a lock that are not among the installed `name==version`."""
    here = {re.sub(r"[-_.]+", "-", line.strip()).lower() for line in installed.splitlines()}
    wanted = [line for line in lock.splitlines() if line and not line.lstrip().startswith("#")]
    return [line for line in wanted if re.sub(r"[-_.]+", "-", line).lower() not in here]


def install_lock(python: Path, hardware: str) -> None:
    """Installs what the lock has and the environment has not, by uv or else by pip."""
    lock = (ROOT / "requirements" / f"{hardware}.txt").read_text(encoding="utf-8")
    listing = subprocess.run([python, "-c", LISTING], capture_output=True, text=True, check=True).stdout
    if not (wanted := ["--no-deps", *missing(lock, listing)])[1:]:
        return
    settings, extra = pip_settings(python), torch_index(hardware)
    plain = install_environment()
    say(f"installing {len(wanted) - 1} packages of requirements/{hardware}.txt")
    pip = [str(python), "-m", "pip", "install"]
    uv = [str(VENV / "bin" / "uv"), "pip", "install", f"--python={python}", *wanted]
    if run_code([*pip, pinned_uv(ROOT)], plain) == 0 and run_code(uv, uv_environment(settings, extra)) == 0:
        return
    say(f"uv did not do it ({LOG}): trying pip")
    indexes = [f"--extra-index-url={index}" for index in extra]
    run([*pip, "--retries=1", "--no-compile", *indexes, *wanted], plain, "installing the lock")


def install_project(python: Path) -> None:
    """Installs this repository in place; needs no network."""
    local = ["--no-deps", "--no-build-isolation", "--no-index", "--editable", "."]
    run([str(python), "-m", "pip", "install", *local], install_environment(), "installing sparring itself")


def try_engines(python: Path) -> None:
    """Imports the engines, beside the preparation of the embedded models: one core each."""
    say("importing the engines and preparing the embedded models")
    env = install_environment()
    with ThreadPoolExecutor() as pool:
        engines = pool.submit(run, [str(python), "-c", ENGINES], env, "importing the engines")
        run([str(python), "-m", "sparring.stages.sample.embedded"], env, "preparing the embedded models")
        engines.result()


def set_up(hardware: str) -> None:
    """All steps, from nothing or on top of what is there."""
    empty_if_unfinished()
    python = make_environment()
    MARK.touch()
    for stamp in VENV.glob(".sparring-setup-*"):
        stamp.unlink()
    install_lock(python, hardware)
    install_project(python)
    MARK.unlink()
    try_engines(python)


def main(asked: str) -> int:
    """Sets up unless it is done; prints what comes next."""
    stamp = VENV / f".sparring-setup-{asked}"
    hardware = detect_hardware() if asked == "auto" else asked
    try:
        check_machine(hardware)
        with alone():
            if not is_done(stamp, [ROOT / name for name in INPUTS]):
                set_up(hardware)
                stamp.touch()
    except SetupError as error:
        print(f"set-up: {error}\nWhen it is mended, run `make setup` again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up: stopped; `make setup` takes it up again", file=sys.stderr)
        return 130
    say(f"set up for {hardware}. Next: make iter N=1")
    return 0


START = time.monotonic()

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Sets .venv up from a committed lock.")
    parser.add_argument("hardware", choices=["auto", "cpu", "cuda"])
    sys.exit(main(parser.parse_args().hardware))
