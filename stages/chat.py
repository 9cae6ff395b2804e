"""Messages to token ids, through the tokenizer's own chat template, rendered once, with one BOS and no text surgery.

A user's text is text: where it spells a control token (`<|im_end|>`), the token that the tokenizer made of it in its
place is swapped for the tokens of the same characters read as plain text; all other ids are untouched. The places are
located by rendering the messages a second time with stand-ins.

Tokens that are part of the vocabulary but not marked `special` in the tokenizer are not control tokens.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sparring.stages.errors import DataError, first_line

Message = Mapping[str, Any]
FEW = 8
"""Control tokens that an error message lists."""


def load_tokenizer(folder: Path) -> Any:
    """Return the folder's tokenizer; DataError when it has none, or no chat template."""
    kind: Any
    try:
        name = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["tokenizer_class"]
    except (OSError, ValueError, KeyError, TypeError):
        name = ""
    try:
        if name == "TokenizersBackend":  # as transformers 5 writes; its import takes 2 s, that of all models 10
            from transformers import TokenizersBackend as kind
        else:
            from transformers import AutoTokenizer as kind
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises no other class
        raise DataError(
            f"{folder}: no tokenizer that loads ({first_line(error)}); "
            "copy tokenizer.json and tokenizer_config.json of the model there."
        ) from None
    if not tokenizer.chat_template:
        raise DataError(
            f"{folder}: no chat template; add chat_template.jinja of the model's chat version. "
            "Base models without one cannot be used as chat models."
        )
    return tokenizer


class Chat:
    """Renders and decodes with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.control_ids = frozenset(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        texts = sorted((tokenizer.decode([i]) for i in self.control_ids), key=len, reverse=True)
        self._control = re.compile("|".join(re.escape(text) for text in texts if text) or r"(?!)")
        bos = tokenizer.bos_token_id
        self._leading = [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []
        """BOS, where the tokenizer itself writes one before a text."""

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's ids: the template's text with the generation prompt, one BOS if the model has one."""
        text, spans = self._text(messages, generation=True)
        return self._ids(text, spans)

    def conversation(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation that ends with its last message, without the generation prompt."""
        text, spans = self._text(messages, generation=False)
        return self._ids(text, spans)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of sampled ids, control tokens left out, nothing tidied."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def response_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text read alone and as plain text: what a response with that text may have been."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def spells_control(self, text: str) -> bool:
        """Return whether the characters of a control token stand in `text`."""
        return bool(self._control.search(text))

    def end_of_turn(self) -> int | None:
        """Return the first control token that the template writes after an assistant's text, None if it writes none."""
        text, _ = self._text(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\ue000"}], generation=False
        )
        after = self.tokenizer(text.rpartition("\ue000")[2], add_special_tokens=False)["input_ids"]
        return next((i for i in after if i in self.control_ids), None)

    def control_tokens(self, names: Sequence[str]) -> list[int]:
        """Return the ids of the control tokens `names`; DataError when one is none of this tokenizer's."""
        known = {self.tokenizer.convert_ids_to_tokens(index): index for index in self.control_ids}
        check_control(names, known)
        return [known[name] for name in names]

    def _text(self, messages: Sequence[Message], *, generation: bool) -> tuple[str, list[tuple[int, int]]]:
        """Return the rendered text and the spans of it that spell a control token in a message."""
        every = [spelled for m in messages for spelled in self._control.findall(m["content"])]
        if not every:
            return self._apply(messages, generation), []
        mark = "\ue000\ue001"  # private-use characters that no message contains
        while any(mark in m["content"] for m in messages):
            mark += "\ue001"
        hidden = [{**m, "content": self._control.sub(mark, m["content"])} for m in messages]
        pieces = self._apply(hidden, generation).split(mark)
        if len(pieces) != len(every) + 1:
            raise DataError("the chat template drops or repeats parts of a message; it cannot be rendered safely.")
        text, spans = pieces[0], []
        for spelled, piece in zip(every, pieces[1:], strict=True):
            spans.append((len(text), len(text) + len(spelled)))
            text += spelled + piece
        return text, spans

    def _apply(self, messages: Sequence[Message], generation: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(m) for m in messages], tokenize=False, add_generation_prompt=generation
                )
            )
        except Exception as error:  # a template may raise what it likes
            roles = ", ".join(m["role"] for m in messages)
            raise DataError(f"the chat template refuses messages of the roles {roles}: {error}") from None

    def _ids(self, text: str, spans: list[tuple[int, int]]) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=bool(spans), verbose=False)
        ids: list[int] = encoded["input_ids"]
        if spans:
            tokens = list(zip(ids, encoded["offset_mapping"], strict=True))
            ids = []
            for index, (start, end) in tokens:
                inside = any(start < last and first < end for first, last in spans)
                ids += self._plain(text[start:end]) if inside and index in self.control_ids else [index]
        return ids if ids[:1] == self._leading or not self._leading else self._leading + ids

    def _plain(self, text: str) -> list[int]:
        """Return the ids of `text` read without control tokens, as it stands after a line break."""
        before = self.tokenizer("\n", add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = self.tokenizer("\n" + text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if ids[: len(before)] == before:
            return list(ids[len(before) :])
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


@lru_cache(maxsize=2)
def load_chat(folder: Path) -> Chat:
    """Return the folder's Chat; a process that serves several shards loads it once."""
    return Chat(load_tokenizer(folder))


def check_control(names: Sequence[str], known: Collection[str]) -> None:
    """DataError when a name in `policy.stop` is not one of `known`, the control tokens of the policy."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=FEW, cutoff=0) if len(known) > FEW else sorted(known)
            raise DataError(f"policy.stop: {name} is no control token of this policy; it has {', '.join(near)}.")


def check_turns(chat: Chat, folder: Path, text: str) -> frozenset[int]:
    """Return the ids of a user's message and of an answer; DataError where the chat template does not render them."""
    user, answer = {"role": "user", "content": text}, {"role": "assistant", "content": "None of them."}
    try:
        if text not in chat._apply([user], generation=True):
            raise DataError("the chat template drops the user's message")
        return frozenset((*chat.render([user]), *chat.conversation([user, answer])))
    except DataError as error:
        raise DataError(f"{folder}: {error}; copy the chat_template.jinja of the model's chat version.") from None


def check_template(tokenizer: Any) -> list[str]:
    """Return what is wrong with a chat template, for `sparring doctor`: not one BOS, no clean round trip."""
    chat = Chat(tokenizer)
    user = 'None of "this" <b>is</b> special: 1\n\n2. naïve 🌷 مرحبا' + "".join(chat.tokenizer.all_special_tokens)
    ids = chat.render([{"role": "user", "content": user}])
    findings = []
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        findings.append("the chat template writes BOS twice at the start")
    if bos is not None and chat._leading and bos not in ids[:1]:
        findings.append("the rendered prompt does not start with BOS")
    if user not in tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False):
        findings.append("a message does not come back unchanged from its ids")
    plain = chat.render([{"role": "user", "content": "a"}])
    if [i for i in ids if i in chat.control_ids] != [i for i in plain if i in chat.control_ids]:
        findings.append("control tokens spelled in a message become control tokens")
    if chat.end_of_turn() is None:
        findings.append("the chat template writes no control token after an assistant's turn: responses cannot end")
    if "strftime_now" in str(tokenizer.chat_template):
        findings.append("the chat template writes today's date: prompts differ from day to day")
    return findings
