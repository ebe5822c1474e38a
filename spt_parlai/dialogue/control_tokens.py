"""What a user writes is ordinary text to the LLM: none of it is read as a control token of the tokenizer.

A tokenizer finds its control tokens (`</s>`, `<|eot_id|>`, `<think>`) in any string, whoever wrote them. Here a text
that holds one is encoded by a copy of the tokenizer in which every control token has a secret name with the same id. A
chat template's own control tokens are written by these names, so the rest of the string is split as it always is.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

FROZEN_DATE = '2024-07-26'  # today, to a chat template; the one that Llama 3.1's template has by itself
DATE = 'strftime_now'  # the function with which a template asks for the date

_MARKUP = re.compile(r'[<\[{|＜].*[>\]}|＞]', re.DOTALL)  # an added token in brackets; others are words or white space
_INSPECTED = ('<think>', '</think>')  # what templates look for in a message
_UNKNOWN = -1e6  # the score of a piece that Unigram never chooses
_TEXTS_KEPT = 10_000
_CODES = [f'%{code}' for code in 'aAbBcCdDeFgGhHIjmMpRSTuUVwWxXyY'] + [f'%-{code}' for code in 'dHIjmMSy']
_FROZEN = """{% macro strftime_now(format) %}
{%- set date = namespace(text=format) -%}
{%- for code, value in frozen_date.items() -%}{%- set date.text = date.text.replace(code, value) -%}{%- endfor -%}
{{- date.text -}}
{% endmacro %}
"""


class SafeTokenizer:
    """Tokenizes texts of users, and chats that hold such texts.

    Everything that holds no control token gets the ids that the tokenizer itself gives.

    :param tokenizer: a Hugging Face tokenizer, which is not changed.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self._controls: dict[str, int] = {
            token.content: token_id
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.special or _MARKUP.fullmatch(token.content)
        }
        self._ids = set(self._controls.values())
        longest_first = sorted(map(re.escape, self._controls), key=len, reverse=True)
        self._pattern = re.compile('|'.join(longest_first) or '(?!)')
        self._secret = f'q{secrets.token_hex(8)}'  # nobody can write a name that begins with it
        self.holds_control_token = lru_cache(maxsize=_TEXTS_KEPT)(self._holds_control_token)

    def encode(self, text: str) -> list[int]:
        """The ids of a user's text."""
        ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids if self._ids.isdisjoint(ids) else self._encode([text])

    def encode_chat(self, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any], **more) -> list[int]:
        """The ids of a chat in the tokenizer's chat template.

        A message with a control token is inserted after the template has been rendered, so that the template can
        neither change it nor cut it.

        :param variables: the template's own variables; see `template_arguments`.
        :param more: further arguments of `apply_chat_template`.
        """
        given = {**template_arguments(self.tokenizer, variables), **more}
        texts = [message['content'] for message in messages]
        names = [f'{self._secret}u{i}q' if self.holds_control_token(text) else '' for i, text in enumerate(texts)]
        if not any(names):
            return self.tokenizer.apply_chat_template(list(messages), return_dict=False, **given)
        shown = [{**m, 'content': name or m['content']} for m, name in zip(messages, names, strict=True)]
        rendered = self.tokenizer.apply_chat_template(shown, tokenize=False, **given)
        parts = re.split(f'{self._secret}u([0-9]+)q', rendered)  # the template's, a message's number, the template's …
        return self._encode([texts[int(part)] if i % 2 else part for i, part in enumerate(parts)], first_is_user=False)

    def _holds_control_token(self, text: str) -> bool:
        return any(tag in text for tag in _INSPECTED) or not self._ids.isdisjoint(
            self.tokenizer.encode(text, add_special_tokens=False)
        )

    def _encode(self, parts: Sequence[str], first_is_user: bool = True) -> list[int]:
        """The ids of parts that are by turns a user's and the template's."""
        by_user = [i % 2 != first_is_user for i in range(len(parts))]
        renamed = [
            part if user else self._pattern.sub(lambda found: self._renamed(found[0]), part)
            for part, user in zip(parts, by_user, strict=True)
        ]
        if self._copy is not None:
            return self._copy.encode(''.join(renamed), add_special_tokens=False).ids
        ids: list[int] = []
        for i, text in enumerate(re.split(f'{self._secret}c([0-9]+)q', ''.join(renamed))):
            if i % 2:
                ids.append(int(text))
            elif text:
                ids += self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    def _renamed(self, token: str) -> str:
        return f'{self._secret}c{self._controls[token]}q'

    @cached_property
    def _copy(self):
        """The tokenizer with other names for its control tokens, or None for one that is written in Python."""
        from tokenizers import Tokenizer

        backend = getattr(self.tokenizer, 'backend_tokenizer', None)
        if backend is None:
            return None
        state = json.loads(backend.to_str())
        new = {token: self._renamed(token) for token in self._controls}
        state['added_tokens'] = [{**t, 'content': new.get(t['content'], t['content'])} for t in state['added_tokens']]
        state.update(truncation=None, padding=None, post_processor=None)
        model = state['model']
        (_rename_unigram if isinstance(model['vocab'], list) else _rename)(model, new, state['added_tokens'])
        return Tokenizer.from_str(json.dumps(state))


def _rename(model: dict[str, Any], new: Mapping[str, str], added: Sequence[Mapping[str, Any]]) -> None:
    """Rename tokens in the vocabulary of BPE, WordPiece or WordLevel, which then keeps the added tokens' ids."""
    vocab = {token: i for token, i in model['vocab'].items() if token not in new}
    model['vocab'] = {**vocab, **{token['content']: token['id'] for token in added}}
    if 'merges' in model:  # none may put a control token together from its pieces
        pairs = [pair.split(' ') if isinstance(pair, str) else pair for pair in model['merges']]
        model['merges'] = [pair for pair in pairs if not {*pair, ''.join(pair)} & new.keys()]
    if model.get('unk_token') in new:
        model['unk_token'] = new[model['unk_token']]


def _rename_unigram(model: dict[str, Any], new: Mapping[str, str], added: Sequence[Mapping[str, Any]]) -> None:
    """The same for Unigram, whose vocabulary is a list of pieces with scores."""
    vocab = [[new.get(piece, piece), score] for piece, score in model['vocab']]
    names = {token['id']: token['content'] for token in added}
    vocab += [[names.get(i, f'{i} is no token'), _UNKNOWN] for i in range(len(vocab), max(names, default=-1) + 1)]
    model['vocab'] = vocab


def template_arguments(tokenizer, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `apply_chat_template` with which the same chat is the same text on every day.

    :param variables: the template's variables. `strftime_now`, a date like 2024-07-26, replaces the frozen one.
    """
    given = {name: value for name, value in variables.items() if name != DATE}
    template = tokenizer.get_chat_template()
    if DATE not in template:
        return given
    date = datetime.fromisoformat(variables.get(DATE, FROZEN_DATE))
    codes = {code: date.strftime(code) for code in _CODES}
    return {**given, 'chat_template': _FROZEN + template, 'frozen_date': codes}
