"""The command line: one message for bad input, nothing heavy loaded to plan, answers in seconds."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sparring.pipeline.store.lease import Lease
from sparring.stages.digests import cached_sha256
from sparring.stages.model_folder import checked
from tests.faults.harness import overrides, write_prompts
from tests.refusals import named
from tests.tiny import tiny_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_policy(tmp_path_factory.mktemp("policy") / "tiny")
    checked(folder)  # once on a machine; plans are timed without it
    return folder


def sparring(*words: str, cwd: Path, before: str = "pass") -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; {before}; from sparring.pipeline.cli import main; code = main(sys.argv[1:]);"
        "print(sorted({'ray', 'torch'} & set(sys.modules))); sys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"},
    )


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one message of a command that stopped; no stack trace anywhere."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: "), done.stderr
    return last


def run_error(folder: Path, policy: Path, *more: str) -> str:
    if not (folder / "prompts.jsonl").exists():
        write_prompts(folder / "prompts.jsonl")
    message = error_of(sparring("run", *overrides(folder, policy, *more), cwd=folder))
    assert not list((folder / "store").glob("*/part-*")), "half-written"
    return message


def test_a_run_that_is_refused_leaves_another_of_its_name_as_it_was(tmp_path: Path, policy: Path) -> None:
    record = tmp_path / "runs" / "default" / "run.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"steps": {"01": {"train": {"fingerprint": "f" * 64, "content": "c"}}}}))
    before = record.read_text()
    (tmp_path / "empty.jsonl").touch()
    named(run_error(tmp_path, policy, f"prompts.path={tmp_path / 'empty.jsonl'}"), "empty.jsonl", "no prompts")
    assert record.read_text() == before


@pytest.mark.parametrize("command", ["plan", "plan --why"])
def test_plan_loads_neither_ray_nor_torch_and_answers_at_once(tmp_path: Path, policy: Path, command: str) -> None:
    write_prompts(tmp_path / "prompts.jsonl")
    begun = time.monotonic()
    done = sparring(*command.split(), *overrides(tmp_path, policy), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "15 steps, 15 to do" in done.stdout and "GiB of disk at the peak" in done.stdout
    assert time.monotonic() - begun < 15, "5 s on an idle machine"


def test_config_is_printed_whole(tmp_path: Path, policy: Path) -> None:
    done = sparring("plan", "--config", *overrides(tmp_path, policy), cwd=tmp_path)
    assert "global_batch: 1" in done.stdout and "oracle:" in done.stdout


BAD_FILES = [
    ("empty", b"", "no prompts"),
    ("truncated", b'{"prompt": "one"}\n{"prompt": "tw', "line 2"),
    ("not UTF-8", b'{"prompt": "one"}\n{"prompt": "caf\xe9"}\n', ("line 2", "UTF-8")),
    ("lacks the column", b'{"promt": "one"}\n', "promt"),
    ("empty prompt", b'{"prompt": "one"}\n{"prompt": "  "}\n', "line 2"),
]


@pytest.mark.parametrize(("name", "content", "names"), BAD_FILES)
def test_a_bad_prompts_file_stops_before_anything_starts(
    tmp_path: Path, policy: Path, name: str, content: bytes, names: str | tuple[str, ...]
) -> None:
    (tmp_path / "prompts.jsonl").write_bytes(content)
    named(run_error(tmp_path, policy), "prompts.jsonl", names)


def test_a_missing_prompts_file(tmp_path: Path, policy: Path) -> None:
    assert "nowhere.jsonl" in run_error(tmp_path, policy, "prompts.path=nowhere.jsonl")


@pytest.mark.parametrize(
    ("remove", "name"),
    [
        ("tokenizer.json", "tokenizer"),
        ("chat_template.jinja", "chat template"),
        ("model.safetensors", "*.safetensors"),
        ("config.json", "config.json"),
    ],
)
def test_a_policy_folder_that_lacks_something(tmp_path: Path, policy: Path, remove: str, name: str) -> None:
    folder = tmp_path / "policy"
    folder.mkdir()
    for path in policy.iterdir():
        if path.name != remove:
            (folder / path.name).symlink_to(path)
    if remove == "chat_template.jinja":
        settings = json.loads((policy / "tokenizer_config.json").read_text())
        settings.pop("chat_template", None)
        (folder / "tokenizer_config.json").unlink()
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    named(run_error(tmp_path, folder), str(folder), name)


def without_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_policy(folder, tied=False)
    weights = load_file(folder / "model.safetensors")
    save_file({name: w for name, w in weights.items() if name != "lm_head.weight"}, folder / "model.safetensors")


def cut_short(folder: Path) -> None:
    path = tiny_policy(folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


def generation_config(folder: Path) -> None:
    (tiny_policy(folder) / "generation_config.json").write_text("{\n")


@pytest.mark.parametrize(
    ("make", "more", "named"),
    [
        (without_head, [], "lm_head.weight"),
        (cut_short, [], "model.safetensors"),
        (generation_config, [], "generation_config.json"),
        (tiny_policy, ["repulsion=hinge", "repulsion.layer=99"], "repulsion.layer=99"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_policy_that_cannot_be_trained_is_refused_before_anything_is_written(
    tmp_path: Path, command: str, make: Callable[[Path], object], more: list[str], named: str
) -> None:
    write_prompts(tmp_path / "prompts.jsonl")
    make(tmp_path / "policy")
    assert named in error_of(sparring(command, *overrides(tmp_path, tmp_path / "policy", *more), cwd=tmp_path))
    assert not (tmp_path / "store").exists() and not (tmp_path / "runs").exists()


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in run_error(tmp_path, tmp_path / "nowhere")


def test_the_same_run_twice_at_once(tmp_path: Path, policy: Path) -> None:
    with Lease(tmp_path / "runs" / "default" / ".lease.json", "run default").acquire(wait=False):
        found = run_error(tmp_path, policy)
    named(found, "run default", "run.name")


def test_too_little_disk_is_said_before_anything_starts(tmp_path: Path, policy: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl")
    before = "import shutil, collections; shutil.disk_usage = lambda p: collections.namedtuple('u', 'free')(10_000)"
    done = sparring("run", *overrides(tmp_path, policy), cwd=tmp_path, before=before)
    named(error_of(done), f"{tmp_path / 'store'}: ", "GiB")


def test_more_than_the_context(tmp_path: Path, policy: Path) -> None:
    found = run_error(tmp_path, policy, "prompts.max_tokens=4000", "trainer.max_length=5000")
    named(found, "= 4008", "2048 tokens")


def test_unknown_key(tmp_path: Path, policy: Path) -> None:
    named(run_error(tmp_path, policy, "samplr.k=2"), "samplr.k", "sampler.k?")


def test_an_unexpected_error_is_one_line_with_its_log(tmp_path: Path) -> None:
    before = "import sparring.pipeline.cli.verify; sparring.pipeline.cli.verify.verify = lambda: 1 / 0"
    done = sparring("verify", cwd=tmp_path, before=before)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "ZeroDivisionError" in done.stderr
    assert "Traceback" in next(tmp_path.glob("sparring-crash-*.log")).read_text()


def test_digests_are_cached_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARRING_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = cached_sha256(path)
    monkeypatch.setattr("sparring.stages.digests.sha256_file", lambda p: "wrong")
    assert cached_sha256(path) == first
    path.write_bytes(b"three")
    assert cached_sha256(path) == "wrong"


def test_a_plan_says_when_the_prompts_are_dealt_again(tmp_path: Path, policy: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 36)
    more = ["prompts.per_iteration=null", "prompts.slices=3", "iterations=5"]
    done = sparring("plan", *overrides(tmp_path, policy, *more), cwd=tmp_path)
    assert "iterations 1 to 3 play on every prompt once; from 4 on they are dealt again, newly permuted" in done.stdout
