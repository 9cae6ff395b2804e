"""The set-up's decisions; that it installs is shown by the environment that runs this."""

import os
import threading
import urllib.error
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from scripts import indexes, install, lock
from tests.refusals import refused

LISTING = """\
:env:.find-links='/wheels'
global.extra-index-url='file:///one file:///two'
global.find-links='/other'
global.index-url='https://mirror/simple'
install.index-url="https://nearer/simple"
"""


def test_pip_settings_take_the_nearest_section() -> None:
    settings = indexes.parse_settings(LISTING)
    assert settings["find-links"] == "/wheels"
    assert settings["index-url"] == "https://nearer/simple"
    assert settings["extra-index-url"].split() == ["file:///one", "file:///two"]


def test_uv_looks_where_pip_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("UV_", "SSL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    env = indexes.uv_environment(indexes.parse_settings(LISTING), ["https://torch"])
    assert env["UV_INDEX"] == "file:///one file:///two https://torch"
    assert env["UV_DEFAULT_INDEX"] == "https://nearer/simple"
    assert env["UV_FIND_LINKS"] == "/wheels"
    assert "SSL_CERT_FILE" not in env
    assert "PYTHONDONTWRITEBYTECODE" not in env


def test_what_the_user_set_for_uv_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mine")
    assert indexes.uv_environment(indexes.parse_settings(LISTING), [])["UV_DEFAULT_INDEX"] == "https://mine"


@pytest.mark.parametrize(
    ("error", "answers"),
    [
        (urllib.error.HTTPError("u", 403, "forbidden", Message(), None), True),
        (urllib.error.URLError("no such host"), False),
        (TimeoutError(), False),
    ],
)
def test_an_index_that_refuses_is_reachable_and_a_silent_one_is_not(
    monkeypatch: pytest.MonkeyPatch, error: OSError, answers: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(indexes.urllib.request, "urlopen", fail)
    assert indexes.reachable("https://somewhere") is answers


def test_the_torch_index_is_for_the_cpu_and_dropped_aloud(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(indexes, "reachable", lambda url: True)
    assert indexes.torch_index("cpu") == [indexes.TORCH_CPU_INDEX]
    assert indexes.torch_index("cuda") == []
    monkeypatch.setattr(indexes, "reachable", lambda url: False)
    assert indexes.torch_index("cpu") == []
    assert indexes.TORCH_CPU_INDEX in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "hardware"),
    [
        ("echo 'GPU 0: H100'", "cuda"),
        ("echo 'No devices were found'", "cpu"),
        ("exit 9", "cpu"),
        (None, "cpu"),
    ],
)
def test_hardware_is_cuda_where_a_gpu_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, hardware: str
) -> None:
    if script:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.detect_hardware() == hardware


def test_a_stamp_is_good_until_an_input_is_newer(tmp_path: Path) -> None:
    stamp, source = tmp_path / "stamp", tmp_path / "lock"
    source.touch()
    assert not install.is_done(stamp, [source])
    stamp.touch()
    os.utime(source, (1, 1))
    assert install.is_done(stamp, [source])
    os.utime(stamp, (0, 0))
    assert not install.is_done(stamp, [source])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment's folder with a package in it."""
    venv = tmp_path / ".venv"
    (venv / "lib" / "package").mkdir(parents=True)
    monkeypatch.setattr(install, "VENV", venv)
    monkeypatch.setattr(install, "MARK", venv / install.MARK.name)
    monkeypatch.setattr(install, "LOG", venv / install.LOG.name)
    return venv


def test_only_an_unfinished_environment_is_emptied(folder: Path) -> None:
    install.empty_if_unfinished()
    assert (folder / "lib" / "package").exists()
    (folder / install.MARK.name).touch()
    install.empty_if_unfinished()
    assert [path.name for path in folder.iterdir()] == [install.MARK.name]


def steps(monkeypatch: pytest.MonkeyPatch, fails: str | None) -> list[str]:
    """Replaces the steps of the set-up by their names; the one named fails."""
    done: list[str] = []

    def step(name: str) -> Any:
        def call(*_: object) -> Path:
            done.append(name)
            if name == fails:
                raise install.SetupError(f"{name} failed")
            return Path("python")

        return call

    for name in ("make_environment", "install_lock", "install_project", "try_engines"):
        monkeypatch.setattr(install, name, step(name))
    return done


def test_set_up_once_is_set_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = steps(monkeypatch, None)
    assert install.main("cpu") == 0
    assert done == ["make_environment", "install_lock", "install_project", "try_engines"]
    assert install.main("cpu") == 0
    assert len(done) == 4


@pytest.mark.parametrize(("fails", "emptied"), [("install_lock", True), ("try_engines", False)])
def test_a_set_up_that_failed_is_done_again(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: str,
    emptied: bool,
) -> None:
    steps(monkeypatch, fails)
    assert install.main("cpu") == 1
    assert capsys.readouterr().err.startswith(f"set-up: {fails} failed\n")
    done = steps(monkeypatch, None)
    assert install.main("cpu") == 0
    assert len(done) == 4
    assert (folder / "lib" / "package").exists() is not emptied


def test_another_hardware_is_set_up_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = steps(monkeypatch, None)
    install.main("cpu")
    install.main("cuda")
    assert len(done) == 8
    assert [path.name for path in folder.glob(".sparring-setup-*")] == [".sparring-setup-cuda"]


def test_a_second_set_up_waits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    said = threading.Event()
    monkeypatch.setattr(install, "say", lambda text: said.set() if "waiting" in text else None)

    def second() -> None:
        with install.alone():
            order.append("second")

    with install.alone():
        thread = threading.Thread(target=second)
        thread.start()
        assert said.wait(30)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_only_what_is_missing_is_installed() -> None:
    lock_text = "a-b==1.0\n    # via c\nd==2.0+cpu\n\ne==3\n"
    assert install.missing(lock_text, "A_b==1.0\nd==2.0\ne==3\n") == ["d==2.0+cpu"]
    assert install.missing(lock_text, "a.b==1.0\nD==2.0+cpu\ne==3\n") == []


def test_the_error_ends_with_what_the_program_said(folder: Path) -> None:
    with refused(install.SetupError, "doing it", "exit 3", str(folder / "setup.log"), "\nno room"):
        install.run(["sh", "-c", "echo no room; exit 3"], dict(os.environ), "doing it")


def test_an_environment_of_another_python_is_named(folder: Path) -> None:
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with refused(install.SetupError, str(folder), "3.11"):
        install.make_environment()


@pytest.mark.parametrize(("system", "free", "name"), [("Darwin", 1e12, "Darwin"), ("Linux", 1e9, "GB")])
def test_a_machine_that_cannot_hold_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, free: float, name: str
) -> None:
    monkeypatch.setattr(install, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(install.platform, "system", lambda: system)
    monkeypatch.setattr(install.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(install.shutil, "disk_usage", lambda path: Usage(free))
    with refused(install.SetupError, name):
        install.check_machine("cpu")


class Usage:
    """What shutil.disk_usage says."""

    def __init__(self, free: float) -> None:
        self.free = free


def test_a_lock_is_resolved_for_the_platform_without_places() -> None:
    cpu = lock.compile_command(Path("uv"), "cpu", ["--upgrade"])
    cuda = lock.compile_command(Path("uv"), "cuda", [])
    assert {"--extra=cpu", "--python-version=3.11", "--no-emit-index-url", "--upgrade"} <= set(cpu)
    assert "--override=requirements/overrides-cpu.txt" in cpu
    assert "--override=requirements/overrides-cpu.txt" not in cuda


def test_a_lock_does_not_depend_on_this_machines_extra_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_INDEX", raising=False)
    monkeypatch.setattr(lock, "pip_settings", lambda python: indexes.parse_settings(LISTING))
    monkeypatch.setattr(lock, "torch_index", lambda hardware: [])
    env = lock.lock_environment(Path("python"), "cpu")
    assert "UV_INDEX" not in env
    assert env["UV_FIND_LINKS"] == "/wheels"
