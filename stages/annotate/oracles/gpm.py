"""The oracle `gpm`: General Preference Model (Zhang et al., arXiv 2410.02197), embeddings under a skew form.

    P(a over b | x) = σ(s / τ),   s = Σ_l λ_l(x) (v_2l-1(a) v_2l(b) - v_2l(a) v_2l-1(b)) = <R v(a), v(b)>

v: W_v h at the last token, of unit length; λ = softmax(W_p h) at the prompt's last token, or 1 where the folder has
no prompt head; R: blocks λ_l [[0, -1], [1, 0]]; h: the backbone's last hidden state, its final norm included. The form
is antisymmetric, and expresses cycles, which no reward model can.

Established from github.com/general-preference/general-preference-model: R, λ, unit length, the prompt's place, and
that the last token of the rendered conversation is replaced by EOS (gpm_example_usage.py, datasets/reward_dataset.py);
σ(s / τ), τ = 0.1 (models/loss.py, HighDimGeneralPreferenceMoELoss; the names of the released checkpoints);
`value_head.weight` (2k, hidden), `prompt_head.weight` (k, hidden), no bias. Options, because that code has both: unit
length (the trainer's model has it commented out) and BOS twice (tokenizer and template both write one, in training
and in the example; a comment there proposes to drop one).

Different from that code: λ is of all messages of the prompt, not of the first one alone; a conversation that is too
long keeps its response's end-of-turn. Not read: heads of several layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sparring.stages.annotate import reader
from sparring.stages.annotate.oracle import Duel, Messages, Oracle, Verdicts
from sparring.stages.annotate.oracles import OracleContext, OracleOptions
from sparring.stages.annotate.reader import PASS_TOKENS, Conversations, Tokens, batches
from sparring.stages.errors import DataError
from sparring.stages.fields import Positive
from sparring.stages.outline import outline
from sparring.stages.plain import listed

if TYPE_CHECKING:
    from torch import Tensor

VALUE, PROMPT = "value_head.weight", "prompt_head.weight"
UNREAD = {"lm_head.weight"}
"""Weights that a checkpoint may have because its class derives from a causal language model."""


@dataclass(frozen=True, kw_only=True)
class Options(OracleOptions):
    """How a checkpoint is read."""

    needs_transformers_to_check: ClassVar[bool] = True
    cost_unit: ClassVar[str] = "texts"

    dtype: reader.Dtype
    """Of the backbone; the heads are in float32."""
    max_tokens: reader.MaxTokens
    """Of prompt and response together; fewer where the model reads fewer."""
    tau: Positive
    """τ of its training."""
    unit: bool
    """Whether embeddings are scaled to unit length."""
    bos_twice: bool
    """Whether a second BOS stands before a conversation, where the tokenizer writes one."""

    def check_folder(self, folder: Path) -> None:
        from transformers import AutoModel

        config, _ = _config(folder)
        _heads(folder, config.get_text_config().hidden_size, "cpu")
        _check_weights(folder, *outline(AutoModel, folder, config))


def load(options: Options, context: OracleContext) -> Oracle:
    """Load the folder of a model."""
    return GPM(context.folders["judge"], options, context.device)


def preference(
    first: NDArray[np.float64], second: NDArray[np.float64], scales: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return s (n,) of embeddings (n, 2k) and scales λ (n, k); swapping first and second gives exactly -s."""
    blocks = first[:, 0::2] * second[:, 1::2] - first[:, 1::2] * second[:, 0::2]
    total: NDArray[np.float64] = (scales * blocks).sum(axis=1)
    return total


def unit_length(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows of (n, 2k) divided by their length; a row of zeros stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax of each row of (n, k)."""
    e = np.exp(x - x.max(axis=1, keepdims=True))
    scaled: NDArray[np.float64] = e / e.sum(axis=1, keepdims=True)
    return scaled


class GPM:
    """A checkpoint on one device. An oracle: no prompt of its training is known."""

    trained_on: frozenset[int] = frozenset()

    def __init__(self, folder: Path, options: Options, device: str = "cpu") -> None:
        from transformers import AutoModel

        from sparring.stages.chat import Chat

        config, tokenizer = _config(folder)
        self.options, self.eos, bos = options, int(tokenizer.eos_token_id), tokenizer.bos_token_id
        written = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
        self.bos = [bos] if options.bos_twice and written else []
        """Added before a conversation, which has one BOS already."""
        most = reader.longest(config, tokenizer, options.max_tokens) - len(self.bos)
        self.read = Conversations(Chat(tokenizer), most, folder)
        self.heads = _heads(folder, config.get_text_config().hidden_size, device)
        loaded = reader.load_model(AutoModel, folder, config, options.dtype, device)
        _check_weights(folder, *loaded)
        self.model = loaded[0]

    def __call__(self, duels: Sequence[Duel]) -> Verdicts:
        """Return s / τ; every (prompt, response) is embedded once, every prompt is read once for its λ."""
        texts, places = reader.texts(duels)
        rows = [self.conversation(*text) for text in texts]
        vectors = self.projected(VALUE, rows)
        if PROMPT in self.heads:
            index = {prompt: i for i, prompt in enumerate(dict.fromkeys(duel.prompt for duel in duels))}
            alone = [self.read.prompt(prompt) for prompt in index]
            scales = self.projected(PROMPT, [row._replace(ids=[*self.bos, *row.ids]) for row in alone])
            scales = scales[[index[duel.prompt] for duel in duels]]
        else:
            scales = np.ones((len(duels), len(self.heads[VALUE]) // 2))
        scores = preference(vectors[places[:, 0]], vectors[places[:, 1]], scales)
        return Verdicts(scores / self.options.tau, reader.truncated(rows, places))

    def conversation(self, prompt: Messages, response: str) -> Tokens:
        """Return a prompt and a response as the model reads them: EOS in place of the last token."""
        row = self.read(prompt, response)
        return row._replace(ids=[*self.bos, *row.ids[:-1], self.eos])

    def projected(self, head: str, rows: Sequence[Tokens]) -> NDArray[np.float64]:
        """Return what a head makes of the last token of each row: embeddings (n, 2k), or scales (n, k)."""
        projections = np.zeros((len(rows), len(self.heads[head])))
        for batch in batches([len(row.ids) for row in rows], PASS_TOKENS[self.model.device.type]):
            states = self._states([rows[i] for i in batch])
            projections[batch] = (states @ self.heads[head].T).double().cpu().numpy()
        if head == PROMPT:
            return softmax(projections)
        return unit_length(projections) if self.options.unit else projections

    def _states(self, rows: Sequence[Tokens]) -> Tensor:
        """Return the last hidden state (n, hidden) at the last token of each row, float32."""
        import torch

        last = torch.tensor([len(row.ids) - 1 for row in rows], device=self.model.device)
        with torch.inference_mode():
            states = self.model(**reader.padded(rows, self.eos, self.model.device)).last_hidden_state
            return states[torch.arange(len(rows), device=states.device), last].float()


def _config(folder: Path) -> tuple[Any, Any]:
    """Return configuration and tokenizer."""
    config, tokenizer = reader.load_config(folder), reader.load_tokenizer(folder)
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        raise DataError(f"{folder}: its tokenizer lacks a chat template or an EOS; copy those it was trained with.")
    return config, tokenizer


def _heads(folder: Path, hidden: int, device: str) -> dict[str, Tensor]:
    """Return the heads by name, float32, checked for their shapes."""
    import torch
    from safetensors import safe_open

    heads: dict[str, Tensor] = {}
    for file in reader.weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            names = {VALUE, PROMPT} & set(opened.keys())
            heads |= {name: opened.get_tensor(name).to(device, torch.float32) for name in names}
    if VALUE not in heads:
        raise DataError(f"{folder}: no weight {VALUE}; oracle=gpm reads a General Preference Model (arXiv 2410.02197).")
    rows = len(heads[VALUE])
    if rows % 2:
        raise DataError(f"{folder}: {VALUE} has {rows} rows; a General Preference Model has an even number of them.")
    for name, wanted in ((VALUE, (rows, hidden)), (PROMPT, (rows // 2, hidden))):
        if name in heads and tuple(heads[name].shape) != wanted:
            raise DataError(f"{folder}: weight {name} is {tuple(heads[name].shape)}, expected is {wanted}.")
    return heads


def _check_weights(folder: Path, model: Any, missing: set[str], unknown: set[str]) -> None:
    unknown = unknown - UNREAD - {VALUE, PROMPT}
    if missing or unknown:
        faults = [f"lacks {listed(missing)}"] if missing else []
        faults += [f"has {listed(unknown)}, which it should not have"] if unknown else []
        raise DataError(f"{folder}: it {' and '.join(faults)}; oracle=gpm reads {type(model).__name__} and two heads.")
