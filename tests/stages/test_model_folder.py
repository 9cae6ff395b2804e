"""What a policy's folder is refused for at plan, and that nothing else is; the folders are tiny, the checks real."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from sparring.pipeline import config
from sparring.pipeline.sources import Sources, check_policy, check_policy_folder
from sparring.stages import model_check, model_folder
from sparring.stages.chat import Chat, load_tokenizer
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.vllm import cpu_head_sizes, known_architectures, runner
from tests.refusals import refused

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 12930408\n"
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
Change = Callable[[Path], Any]


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ROWS = 256 + len(CONTROL)
SHAPE: dict[str, Any] = {
    "vocab_size": ROWS, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip


def made(kind: str, folder: Path, **more: Any) -> Path:
    """Write a random model of an architecture."""
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SHAPE, **more})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama whose tokens are the bytes and ChatML's: it loads in a blink."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = made("llama", tmp_path_factory.mktemp("policy") / "bytes")
    vocab = {token: i for i, token in enumerate([*CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=CONTROL[2], bos_token=CONTROL[1])
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to break, looked at in this process and with an empty cache."""
    monkeypatch.setattr(model_folder, "_in_own_process", model_check.check)
    monkeypatch.setenv("SPARRING_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(policy, tmp_path / "policy"))


def setting(name: str, **values: Any) -> Change:
    """Set keys of a JSON file; None takes one away."""

    def change(folder: Path) -> None:
        found = {**json.loads((folder / name).read_text()), **values}
        (folder / name).write_text(json.dumps({key: value for key, value in found.items() if value is not None}))

    return change


def text(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def tensors(make: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]) -> Change:
    """Save the weights anew, each as the tensors that `make` returns of it."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        made = {name: t.contiguous() for old, w in load_file(path).items() for name, t in make(old, w).items()}
        save_file(made, path, metadata={"format": "pt"})

    return change


def cut(size: int) -> Change:
    return lambda folder: text("model.safetensors", (folder / "model.safetensors").read_bytes()[:size])(folder)


def sharded(lost: str | None = None) -> Change:
    """Part the weights into two files with an index; lost: one of them that is not there."""

    def change(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        places = {name: names[i % 2] for i, name in enumerate(sorted(found))}
        for name in names:
            save_file({key: found[key] for key, place in places.items() if place == name}, folder / name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        if lost:
            (folder / lost).unlink()

    return change


def index(file: str) -> Change:
    """Write an index of all tensors to one file, beside the weights."""

    def change(folder: Path) -> None:
        places = dict.fromkeys(load_file(folder / "model.safetensors"), file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))

    return change


def token(content: str, special: bool) -> Change:
    """Add a token beyond the embedding's rows."""

    def change(folder: Path) -> None:
        found = json.loads((folder / "tokenizer.json").read_text())
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
        found["added_tokens"].append({"id": ROWS, "content": content, **flags})
        (folder / "tokenizer.json").write_text(json.dumps(found))

    return change


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


REFUSED: dict[str, tuple[Change, str | tuple[str, ...]]] = {
    "config is no JSON": (text("config.json", "{"), "config.json"),
    "config is a list": (text("config.json", "[]"), "config.json"),
    "config is UTF-16": (text("config.json", "{}".encode("utf-16")), "config.json"),
    "config is a pointer": (text("config.json", LFS), ("config.json", "Git LFS")),
    "config is nested": (text("config.json", "[" * 100_000), "config.json"),
    "no model_type": (setting("config.json", model_type=None), ("config.json", "model_type")),
    "unknown model_type": (setting("config.json", model_type="gpt17"), ("config.json", "gpt17")),
    "remote code": (
        setting("config.json", model_type="own", auto_map={"AutoModelForCausalLM": "modeling.Own"}),
        ("config.json", "own", "auto_map"),
    ),
    "an encoder": (setting("config.json", model_type="bert", is_decoder=False), ("config.json", "bert")),
    "an encoder-decoder": (setting("config.json", model_type="t5"), ("config.json", "t5")),
    "wrong type": (setting("config.json", hidden_size="64"), ("config.json", "hidden_size")),
    "heads do not divide": (setting("config.json", num_attention_heads=7), ("config.json", "(64)", "(7)")),
    "no layers": (setting("config.json", num_hidden_layers=0), ("config.json", "num_hidden_layers")),
    "a layer too few": (setting("config.json", num_hidden_layers=3), ("lack model.layers.2.", "6 more")),
    "a layer too many": (
        setting("config.json", num_hidden_layers=1),
        ("hold model.layers.1.", "6 more", "LlamaForCausalLM", "config.json"),
    ),
    "a layer too many for predicting more tokens": (
        setting("config.json", num_hidden_layers=1, num_nextn_predict_layers=0),
        "hold model.layers.1.",
    ),
    "a layer too many, saved from the base model": (
        both(tensors(lambda n, w: {n.removeprefix("model."): w}), setting("config.json", num_hidden_layers=1)),
        "hold layers.1.",
    ),
    "biases that are not read": (
        tensors(lambda n, w: {n: w} | ({f"{n[:-7]}.bias": torch.ones(64)} if "q_proj" in n else {})),
        ("hold model.layers.0.self_attn.q_proj.bias", "config.json"),
    ),
    "other shapes": (setting("config.json", vocab_size=100), ("lm_head.weight", "(259, 64)", "(100, 64)")),
    "cut": (cut(100_000), ("model.safetensors", "100,000 bytes")),
    "cut in its header": (cut(100), "model.safetensors"),
    "empty": (cut(0), "model.safetensors"),
    "longer": (
        lambda f: text("model.safetensors", (f / "model.safetensors").read_bytes() + b"\0")(f),
        "model.safetensors",
    ),
    "a pointer": (text("model.safetensors", LFS), ("model.safetensors", "Git LFS")),
    "a page": (text("model.safetensors", "<!DOCTYPE html>" * 9), "model.safetensors"),
    "a link to nothing": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").symlink_to("nowhere")),
        "model.safetensors",
    ),
    "another name": (lambda f: (f / "model.safetensors").rename(f / "best.safetensors"), "model.safetensors"),
    "a lost shard": (sharded("model-00002-of-00002.safetensors"), ("index.json", "model-00002-of-00002")),
    "an index of nothing": (
        both(sharded(), text("model.safetensors.index.json", "{}")),
        ("index.json", "weight_map"),
    ),
    "an index without metadata": (
        both(sharded(), setting("model.safetensors.index.json", metadata=None)),
        ("index.json", "metadata"),
    ),
    "a broken index beside the weights": (text("model.safetensors.index.json", "[]"), ("index.json", "remove")),
    "an index that is no JSON": (text("model.safetensors.index.json", "{"), ("index.json", "remove")),
    "an index of no files": (text("model.safetensors.index.json", '{"weight_map": {}}'), ("index.json", "remove")),
    "a stale index beside the weights": (
        text("model.safetensors.index.json", '{"weight_map": {"a": "nope.safetensors"}}'),
        ("index.json", "nope.safetensors", "model.safetensors", "remove"),
    ),
    "an index of other weights beside these": (
        both(lambda f: shutil.copy(f / "model.safetensors", f / "old.safetensors"), index("old.safetensors")),
        ("index.json", "old.safetensors"),
    ),
    "negative epsilon": (setting("config.json", rms_norm_eps=-1.0), ("config.json", "rms_norm_eps", "-1.0")),
    "negative base of rotations": (
        setting("config.json", rope_parameters={"rope_type": "default", "rope_theta": -1.0}),
        ("config.json", "rope_theta", "-1.0"),
    ),
    "no base of rotations": (
        setting("config.json", rope_theta=0, rope_parameters=None),
        ("config.json", "rope_theta", "0"),
    ),
    "no head": (tensors(lambda n, w: {} if n == "lm_head.weight" else {n: w}), ("lack lm_head.weight", "Llama")),
    "no norm": (tensors(lambda n, w: {} if n == "model.norm.weight" else {n: w}), "lack model.norm.weight"),
    "names of another wrapper": (tensors(lambda n, w: {f"module.{n}": w}), "have module."),
    "transposed": (tensors(lambda n, w: {n: w.T if "up_proj" in n else w}), ("up_proj.weight", "(64, 160)")),
    "integers": (tensors(lambda n, w: {n: w.char() if "q_proj" in n else w}), ("q_proj.weight", "quantized")),
    "GPTQ": (tensors(lambda n, w: {n.replace("weight", "qweight"): w}), ("qweight", "quantized")),
    "quantized": (setting("config.json", quantization_config={"quant_method": "awq"}), ("quantization_config", "awq")),
    "an adapter": (text("adapter_config.json", "{}"), ("adapter_config.json", "merge_and_unload")),
    "generation config": (text("generation_config.json", "{"), "generation_config.json"),
    "end is a text": (
        setting("generation_config.json", eos_token_id="</s>"),
        ("generation_config.json", "eos_token_id"),
    ),
    "end is beyond": (setting("generation_config.json", eos_token_id=[2, 10**6]), ("eos_token_id", "1000000")),
    "end is unknown": (setting("tokenizer_config.json", eos_token="<nope>"), ("eos_token", "tokenizer_config.json")),
    "tokenizer is no JSON": (text("tokenizer.json", "{"), "tokenizer.json"),
    "tokenizer is another object": (text("tokenizer.json", '{"a": 1}'), "tokenizer.json"),
    "tokenizer of an unknown kind": (setting("tokenizer.json", model={"type": "Nope"}), "tokenizer.json"),
    "tokenizer_config": (text("tokenizer_config.json", "{,"), "tokenizer_config.json"),
    "special_tokens_map": (text("special_tokens_map.json", "{"), "special_tokens_map.json"),
    "more tokens": (token("<new>", special=False), ("259 rows", "<new>")),
    "a template's own token": (
        both(token("<turn>", special=True), text("chat_template.jinja", "<turn>" + PLAIN)),
        ("259 rows", "<turn>"),
    ),
    "template is empty": (text("chat_template.jinja", ""), "chat template"),
    "template is not closed": (text("chat_template.jinja", "{% for m in messages %}"), "chat template"),
    "template raises": (text("chat_template.jinja", "{{ raise_exception('no') }}"), ("chat template", ": no;")),
    "template fails": (text("chat_template.jinja", "{{ 1 + messages }}"), "chat template"),
    "template drops the message": (text("chat_template.jinja", PLAIN.replace("content", "text")), "drops"),
    "template refuses answers": (
        text("chat_template.jinja", "{% if messages|length > 1 %}{{ raise_exception('no') }}{% endif %}" + PLAIN),
        "user, assistant: no;",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_is_refused(folder: Path, name: str) -> None:
    change, names = REFUSED[name]
    change(folder)
    with refused(DataError, names):
        check_policy_folder(folder)


LEGAL: dict[str, Change] = {
    "as it is": lambda f: None,
    "shards": sharded(),
    "half precision": tensors(lambda n, w: {n: w.half()}),
    "saved from the base model": tensors(lambda n, w: {n.removeprefix("model."): w}),
    "tensors that are not read": tensors(lambda n, w: {n: w, "v_head.weight": torch.ones(3)}),
    "layers that predict further tokens": both(
        tensors(lambda n, w: {n: w} | ({n.replace(".1.", ".2."): w + 1} if ".1." in n else {})),
        setting("config.json", num_nextn_predict_layers=1),
    ),
    "a head that predicts further tokens": tensors(
        lambda n, w: {n: w, "model.mtp_layers.0.norm.weight": torch.ones(3), "mtp.fc.weight": torch.ones(3)}
    ),
    "buffers of old checkpoints": tensors(
        lambda n, w: {
            n: w,
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3),
            "model.layers.0.self_attn.rotary_emb.cos_cached": torch.ones(3),
            "model.layers.0.attn.bias": torch.ones(1, 1, 8, 8),
            "model.layers.0.attn.masked_bias": torch.ones(()),
        }
    ),
    "a head beside tied embeddings": setting("config.json", tie_word_embeddings=True),
    "an integer buffer": tensors(lambda n, w: {n: w, "model.position_ids": torch.arange(4)}),
    "auto_map beside a known model_type": setting("config.json", auto_map={"AutoModelForCausalLM": "modeling.Own"}),
    "quantization_config is null": lambda f: text(
        "config.json", (f / "config.json").read_text().replace("{", '{"quantization_config": null,', 1)
    )(f),
    "no generation config": lambda f: (f / "generation_config.json").unlink(),
    "several ends": setting("generation_config.json", eos_token_id=[0, 2]),
    "a control token that nothing writes": token("<image>", special=True),
    "no architectures": setting("config.json", architectures=None),
    "architectures are null": lambda f: text(
        "config.json", (f / "config.json").read_text().replace('"architectures"', '"architectures": null, "was"', 1)
    )(f),
    "a base of rotations that is not read": setting("config.json", rope_theta=-1),
    "an index beside the weights": index("model.safetensors"),
}


@pytest.mark.parametrize("name", LEGAL)
def test_a_folder_that_transformers_loads_whole_is_none_of_them(folder: Path, name: str) -> None:
    LEGAL[name](folder)
    check_policy_folder(folder)
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    _, report = loaded
    assert not report["missing_keys"] and not report["mismatched_keys"]


def test_tied_weights_are_stored_once(folder: Path) -> None:
    without = tensors(lambda n, w: {} if n == "lm_head.weight" else {n: w})
    both(without, setting("config.json", tie_word_embeddings=True))(folder)
    check_policy_folder(folder)


EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16}
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, **EXPERTS},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2},
    "phi3": {},
    "gemma3_text": {"head_dim": 32},
    "granite": {"logits_scaling": 8.0},
    "stablelm": {},
    "falcon_h1": MAMBA,
    "mamba": {},
}
"""Fused experts, fused projections, tied heads, recurrent layers."""


@pytest.mark.parametrize("kind", KINDS)
def test_other_architectures(folder: Path, kind: str) -> None:
    (folder / "model.safetensors").unlink()
    check_policy_folder(made(kind, folder, **KINDS[kind]))


def test_an_expert_that_is_missing(folder: Path) -> None:
    made("mixtral", folder, **KINDS["mixtral"])
    (lost,) = {n.rpartition(".")[0] for n in load_file(folder / "model.safetensors") if ".1." in n and "3.w1" in n}
    tensors(lambda n, w: {} if n.startswith(lost) else {n: w})(folder)
    with refused(DataError, str(folder)):
        check_policy_folder(folder)


@pytest.mark.parametrize("seed", range(40))
def test_a_header_is_read_where_safetensors_reads_it(tmp_path: Path, seed: int) -> None:
    """Whatever byte is changed."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(1, dtype=torch.int64)}, path)
    assert model_folder.header(path) == {"a": ("F32", (2, 3)), "b": ("I64", (1,))}
    content = bytearray(path.read_bytes())
    content[seed * 3 % 120] ^= 1 << seed % 8
    path.write_bytes(content)
    try:
        with safe_open(path, "pt") as opened:
            found = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError:
        with refused(DataError, str(path)):
            model_folder.header(path)
    else:
        assert {name: tensor.shape for name, tensor in model_folder.header(path).items()} == found


def test_a_content_is_looked_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(model_folder, "_in_own_process", lambda f: asked.append(f) or model_check.facts(f))
    first = model_folder.checked(folder)
    copy = Path(shutil.copytree(folder, folder.with_name("copy")))
    assert model_folder.checked(copy) == first and asked == [folder]
    tensors(lambda n, w: {n: w + 1})(copy)  # other numbers of the same shapes
    assert model_folder.checked(copy) == first and asked == [folder]
    setting("tokenizer_config.json", model_max_length=99)(copy)
    model_folder.checked(copy)
    assert asked == [folder, copy]


def test_a_refusal_is_not_kept(folder: Path) -> None:
    for _ in range(2):
        text("chat_template.jinja", "hello")(folder)
        with refused(DataError, str(folder), "template"):
            check_policy_folder(folder)
    text("chat_template.jinja", PLAIN)(folder)
    check_policy_folder(folder)


def test_a_check_that_dies_is_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("SPARRING_CACHE", str(folder.parent / "cache"))
    monkeypatch.setattr("sys.executable", "/bin/false")
    with refused(DataError, f"{folder}: ", "doctor"):
        model_folder.checked(folder)


def test_without_transformers_the_files_are_looked_at_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_folder, "find_spec", lambda name: None)
    assert model_folder.checked(folder) is None
    text("tokenizer.json", "{")(folder)
    with refused(DataError, "tokenizer.json"):
        model_folder.checked(folder)


def chosen(folder: Path, *overrides: str) -> None:
    """Look at the settings of a run of the folder's policy."""
    found = config.load(["policy=folder", f"policy.path={folder}", "hardware=cpu", *overrides])
    check_policy(found, Sources().policy(found.policy))


@pytest.mark.parametrize("layer", [-2, -1, 0, 1])
def test_a_layer_that_there_is(folder: Path, layer: int) -> None:
    chosen(folder, "repulsion=hinge", f"repulsion.layer={layer}")


@pytest.mark.parametrize("layer", [99, 2, -3])
def test_a_layer_that_there_is_not(folder: Path, layer: int) -> None:
    with refused(ConfigError, f"repulsion.layer={layer}", "2"):
        chosen(folder, "repulsion=hinge", f"repulsion.layer={layer}")


TARGETS = {
    "[nope]": ("['nope']", "layer nope", "down_proj, "),
    "[q_proj,nope]": ("['q_proj', 'nope']", "layer nope"),
    "[embed_tokens]": ("layer embed_tokens",),
    "[lm_head]": ("['lm_head']",),
}


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
@pytest.mark.parametrize("targets", TARGETS)
def test_targets_of_an_adapter_that_there_are_not(folder: Path, targets: str, adapter: str) -> None:
    with refused(ConfigError, "trainer.adapter.targets=", TARGETS[targets]):
        chosen(folder, f"adapter={adapter}", f"trainer.adapter.targets={targets}")


def test_an_adapter_that_the_layers_take(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for targets in ("[]", "[q_proj,v_proj]", "[layers.1.self_attn.q_proj]", "[model.layers.0.mlp.up_proj]"):
        chosen(folder, "adapter=lora", f"trainer.adapter.targets={targets}")
    chosen(folder, "adapter=lora", "trainer.adapter.rank=64")
    with refused(ConfigError, "trainer.adapter.rank=1000000", "64"):
        chosen(folder, "adapter=lora", "trainer.adapter.rank=1000000")
    monkeypatch.setattr(model_folder, "_in_own_process", None)  # what was found is kept
    chosen(folder, "adapter=lora", "trainer.adapter.rank=64")


def test_an_adapter_for_a_model_that_peft_takes_none_for(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    made("mamba", folder)
    with refused(ConfigError, "trainer.adapter.targets=[]", "mamba"):
        chosen(folder, "adapter=lora", "sampler=transformers")


@pytest.mark.parametrize("alpha", ["1e308", "1e-320", "0"])
def test_an_adapter_whose_scale_is_no_number(alpha: str) -> None:
    with refused(ConfigError, "trainer.adapter.alpha=", "1e-06 to 1e+06"):
        config.load(["adapter=lora", f"trainer.adapter.alpha={alpha}"])


def test_stop_tokens_are_the_tokenizers(folder: Path) -> None:
    chosen(folder, 'policy.stop=["<|im_end|>"]')
    with refused(DataError, "policy.stop: <|eot_id|>", "<|im_end|>"):
        chosen(folder, 'policy.stop=["<|eot_id|>"]')


def test_an_unknown_stop_token_is_not_the_unknown_token(folder: Path) -> None:
    """Which is a control token of many tokenizers."""
    setting("tokenizer_config.json", unk_token=CONTROL[0])(folder)
    chat = Chat(load_tokenizer(folder))
    assert chat.control_tokens([CONTROL[2]]) == [2]
    with refused(DataError, "policy.stop: <|eot_id|>"):
        chat.control_tokens(["<|eot_id|>"])


def test_something_ends_a_response(folder: Path) -> None:
    endless = [
        setting(f"{name}_config.json", eos_token=None, eos_token_id=None) for name in ("tokenizer", "generation")
    ]
    both(*endless, text("chat_template.jinja", PLAIN))(folder)
    with refused(DataError, str(folder), "policy.stop"):
        chosen(folder)
    chosen(folder, 'policy.stop=["<|im_end|>"]')


def test_heads_that_the_engine_has_no_attention_for(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    made("llama", folder, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    with refused(ConfigError, "sampler.engine=vllm", "16"):
        chosen(folder, "sampler=vllm")
    chosen(folder, "sampler=transformers")


def test_an_architecture_that_the_engine_does_not_know(folder: Path) -> None:
    setting("config.json", architectures=["NeverForCausalLM"])(folder)
    with refused(ConfigError, "sampler.engine=vllm", "NeverForCausalLM"):
        chosen(folder, "sampler=vllm")
    chosen(folder, "sampler=transformers")


@pytest.mark.parametrize(
    "names",
    [
        ["LlamaForSequenceClassification"],
        "LlamaForSequenceClassification",
        ["GPT2ForSequenceClassification"],
        ["NeverModel", "LlamaForCausalLM"],
        ["Qwen2ForCausalLM"],
        ["GPT2LMHeadModel"],
    ],
)
def test_architectures_that_the_engine_takes_for_another_model(folder: Path, names: list[str] | str) -> None:
    """It generates nothing, or makes up what Llama does not have, such as Qwen's biases."""
    setting("config.json", architectures=names)(folder)
    first = names if isinstance(names, str) else names[0]
    with refused(ConfigError, "sampler.engine=vllm", first, '["LlamaForCausalLM"]'):
        chosen(folder, "sampler=vllm")
    chosen(folder, "sampler=transformers")


BESIDE: dict[str, tuple[Change, str]] = {
    "a value head": (tensors(lambda n, w: {n: w, "v_head.weight": torch.ones(3)}), "v_head.weight"),
    "another file": (
        lambda f: shutil.copy(f / "model.safetensors", f / "old.safetensors"),
        "old.safetensors",
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_the_engine_reads_beside_the_model(folder: Path, name: str) -> None:
    change, named = BESIDE[name]
    change(folder)
    with refused(ConfigError, "sampler.engine=vllm", named):
        chosen(folder, "sampler=vllm")
    chosen(folder, "sampler=transformers")


@pytest.mark.parametrize("names", [None, [], ["LlamaModel"], ["LlamaForCausalLM"], ["MistralForCausalLM"]])
def test_architectures_that_the_engine_generates_with(folder: Path, names: list[str] | None) -> None:
    setting("config.json", architectures=names)(folder)
    chosen(folder, "sampler=vllm")


def test_what_is_read_of_the_engines_source() -> None:
    assert {"LlamaForCausalLM", "GraniteForCausalLM", "Gemma2ForCausalLM", "OlmoForCausalLM"} <= known_architectures()
    assert runner("LlamaForCausalLM") == runner("GPT2LMHeadModel") == "generate" and not runner("Never")
    assert runner("LlamaForSequenceClassification") == runner("LlamaModel") == "pooling"
    assert not {"NeverForCausalLM", "MptForCausalLM"} & known_architectures()
    assert 64 in cpu_head_sizes() and 16 not in cpu_head_sizes()
