"""The key of a prompt is part of the data format; loading refuses what it does not know."""

import hashlib
import subprocess
import sys
from pathlib import Path

from sparring.stages.annotate import oracles
from sparring.stages.annotate.config import JudgeConfig
from sparring.stages.annotate.oracle import prompt_key, read_weights
from sparring.stages.annotate.oracles import OracleContext
from sparring.stages.errors import ConfigError, DataError
from tests.refusals import refused

JUDGES = Path(__file__).parents[3] / "stages/annotate/judges"


def test_prompt_key_golden() -> None:
    assert prompt_key([("user", "What is the capital of France?")]) == -3_922_410_945_440_680_592
    assert prompt_key([]) == int.from_bytes(hashlib.sha256(b"").digest()[:8], "big", signed=True)


def test_prompt_key_ignores_case_and_white_space_and_other_turns() -> None:
    plain = prompt_key([("user", "tell me more")])
    assert (
        prompt_key([("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", " Tell\n me  MORE ")])
        == plain
    )
    assert prompt_key([("user", "tell me more"), ("assistant", "prefill")]) == plain
    assert prompt_key([("user", "tell me less")]) != plain


def test_prompt_key_is_signed() -> None:
    keys = [prompt_key([("user", str(k))]) for k in range(64)]
    assert min(keys) < 0 < max(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_unknown_kind_names_the_choices() -> None:
    with refused(ConfigError, "lexical", "mini", "pairrm"):
        oracles.load("gpt", {}, OracleContext(folders={}))


def test_options_name_the_key() -> None:
    with refused(ConfigError, "oracle.options.dtype=half", "float32", "bfloat16"):
        oracles.options("pairrm", {"dtype": "half"})
    with refused(ConfigError, "oracle.options.flor", "mini"):
        oracles.options("mini", {"flor": 1})


def test_members_get_what_is_theirs() -> None:
    folders = {f"{place}judge": Path(place) for place in ("a.", "ab.", "a.b.")}
    b = JudgeConfig(kind="llm", urls=("y",))
    members = {"a": JudgeConfig(kind="llm", urls=("x",), members={"b": b}), "ab": JudgeConfig(kind="llm", urls=("z",))}
    given = OracleContext(folders=folders, judge=JudgeConfig(kind="ensemble", members=members), cpus=3, gpus=1)
    a = given.member("a")
    assert a.folders == {"judge": Path("a."), "b.judge": Path("a.b.")} and a.judge == members["a"]
    assert a.member("b").judge == b
    assert a.member("b").folders == {"judge": Path("a.b.")} and (a.cpus, a.device) == (3, "cuda")


def test_what_a_plan_looks_at_imports_no_model_library() -> None:
    code = "import sys, sparring.stages.annotate.oracles as o\n[o._module(k) for k in o.kinds()]\n"
    code += "print([m for m in ('torch', 'transformers', 'sklearn', 'vllm', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    with refused(DataError, "model.safetensors"):
        oracles.load("lexical", {}, OracleContext(folders={"judge": tmp_path}))


def test_weights_that_are_not_the_cards_are_refused(tmp_path: Path) -> None:
    for name in ("model.safetensors", "card.json"):
        (tmp_path / name).write_bytes((JUDGES / "lexical" / name).read_bytes())
    assert read_weights(tmp_path, ["weight"])[1]
    with (tmp_path / "model.safetensors").open("ab") as handle:
        handle.write(b"\0")
    with refused(DataError, "model.safetensors", "sha256"):
        read_weights(tmp_path, ["weight"])


def test_missing_tensor_is_named() -> None:
    with refused(DataError, "tensor bias"):
        read_weights(JUDGES / "lexical", ["bias"])


def test_judges_never_share_a_training_prompt() -> None:
    mini, lexical = (read_weights(JUDGES / kind, [])[1] for kind in ("mini", "lexical"))
    assert mini
    assert lexical
    assert not mini & lexical
