"""The LLM's own tokenizer as a ParlAI dictionary. Nothing is added to it, and no copy of it is saved."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from parlai.core.dict import DictionaryAgent

from spt_parlai.dialogue.control_tokens import SafeTokenizer
from spt_parlai.dialogue.messages import well_formed
from spt_parlai.errors import UsageError
from spt_parlai.hub import load_config, load_tokenizer

NULL_ID = -1  # padding; no token has this id, so a real token is never mistaken for padding
START_ID = -2  # the start of ParlAI's search; never embedded, and different from EOS, which is BOS for OPT
_WORD_START = ('▁', 'Ġ')  # a leading space as SentencePiece and byte-level BPE write it
_PIECES_KEPT = 200_000
_IN_NO_ALPHABET = '\U0010fffd'  # a private character: where a tokenizer knows neither it nor its bytes, it is unknown


class TokenizerDictionary(DictionaryAgent):
    """Gives a Hugging Face tokenizer the interface of a ParlAI dictionary.

    :raises UsageError: if the tokenizer has no end-of-sequence token, or gives ids that the LLM has no embedding for.
    """

    null_token, start_token = '__null__', '__start__'

    @classmethod
    def add_cmdline_args(cls, parser, partial_opt=None):
        # --llm decides everything; some of ParlAI's code gives the file that lies beside the model file
        if '--dict-file' not in parser._option_string_actions:
            parser.add_argument('--dict-file', default=None, hidden=True, help='the file beside the model file')
        return parser

    def __init__(self, opt, shared=None):
        self.opt = opt
        self.tokenizer = load_tokenizer(opt['llm'], opt.get('llm_revision'))
        if self.tokenizer.eos_token_id is None:
            raise UsageError(
                f'--llm {opt["llm"]}: its tokenizer has no end-of-sequence token, which every reply must end in; '
                'choose another LLM or set eos_token in its tokenizer_config.json.'
            )
        self.embedded = load_config(opt['llm'], opt.get('llm_revision')).vocab_size  # ids below this have an embedding
        self.bos, self.eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        self.end_token = self.tokenizer.eos_token
        self.unk_token = self.tokenizer.unk_token or self.end_token
        self.safe = SafeTokenizer(self.tokenizer)
        self._adds_space = self._tokenizer_adds_space()
        self.piece = lru_cache(maxsize=_PIECES_KEPT)(self._piece)
        beyond = sorted(i for i in self.tokenizer.get_vocab().values() if i >= self.embedded)
        self._size = len(self.tokenizer) - len(beyond)
        unknown = next((token_id for token_id in beyond if self._can_occur(token_id)), None)
        if unknown is not None:  # many tokenizers have further tokens that nothing gives, such as an added `<pad>`
            raise UsageError(
                f'--llm {opt["llm"]}: its tokenizer has {len(self.tokenizer)} tokens, but the LLM knows '
                f'{self.embedded}, and {self[unknown]!r} can occur in a context or a reply; take both from the same '
                'model.'
            )

    def _can_occur(self, token_id: int) -> bool:
        """Whether BOS, EOS or a text gives this id. A control token is given by no text, because texts are split."""
        if token_id in (self.bos, self.eos):
            return True
        added = self.tokenizer.added_tokens_decoder.get(token_id)
        return added is None or token_id in self.piece(f'{added.content}{_IN_NO_ALPHABET}', True)

    def _tokenizer_adds_space(self) -> bool:
        """Whether the tokenizer itself marks the start of a text as the start of a word."""
        ids = self.tokenizer.encode('Q', add_special_tokens=False)
        return bool(ids) and self.tokenizer.convert_ids_to_tokens(ids[0]).startswith(_WORD_START)

    def _piece(self, text: str, opens: bool) -> tuple[int, ...]:
        """Token ids of one piece of the template. A piece that does not open the context follows a space.

        Control tokens in a user's text are read as plain text.
        """
        text = well_formed(text)
        if not opens and not self._adds_space:
            text = ' ' + text
        return tuple(self.safe.encode(text))

    def other_ends(self, ids: Sequence[int]) -> list[int]:
        """Those of an LLM's end tokens that are special tokens, and not EOS, such as the end of a turn in a chat."""
        added = self.tokenizer.added_tokens_decoder
        return [i for i in ids if i != self.eos and i < self.embedded and i in added and added[i].special]

    # ---- the interface of a dictionary ----------------------------------------------------------------

    def is_prebuilt(self) -> bool:
        return True

    def __len__(self) -> int:
        """How many of the tokenizer's tokens the LLM has an embedding for."""
        return self._size

    def __contains__(self, key) -> bool:
        return key in self.tokenizer.get_vocab() if isinstance(key, str) else key in range(len(self))

    def __getitem__(self, key):
        special = {self.null_token: NULL_ID, self.start_token: START_ID}
        if isinstance(key, str):
            if key in special:
                return special[key]
            found = self.tokenizer.get_vocab().get(key)
            return self.tokenizer.get_vocab()[self.unk_token] if found is None else found
        for token, token_id in special.items():
            if key == token_id:
                return token
        return self.tokenizer.convert_ids_to_tokens(int(key))

    def __setitem__(self, key, value) -> None:
        """Do nothing: ParlAI would pad the dictionary for fp16, but it must keep the size of the LLM's vocabulary."""

    @property
    def tok2ind(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    @property
    def ind2tok(self) -> dict[int, str]:
        return {i: t for t, i in self.tokenizer.get_vocab().items()}

    def keys(self):
        return self.tokenizer.get_vocab().keys()

    def txt2vec(self, text: str, vec_type=list):
        """The token ids of a reply after `R:`, without EOS."""
        return vec_type(self.piece(' '.join(text.split()), False)) if text.strip() else vec_type()

    def vec2txt(self, vector, delimiter: str = ' ') -> str:
        return self.decode(vector).strip()

    def decode(self, vector) -> str:
        """The text of token ids, white space at its ends included."""
        ids = [int(i) for i in vector]
        return self.tokenizer.decode(
            [i for i in ids if i >= 0], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def tokenize(self, text: str, building: bool = False) -> list[str]:
        return self.tokenizer.convert_ids_to_tokens(self.txt2vec(text))

    def add_additional_special_tokens(self, additional_special_tokens) -> None:
        raise UsageError(
            f'--special-tok-lst {",".join(additional_special_tokens)}: no tokens are added to a frozen LLM; leave it '
            'out.'
        )

    def act(self):
        return {}

    def __str__(self) -> str:
        return f'the tokenizer of --llm {self.opt["llm"]}'

    def shutdown(self) -> None:
        """Do nothing: there is nothing to save."""

    def save(self, filename=None, append=False, sort=True) -> None:
        """Write a file that only names the LLM, because ParlAI looks for one beside the model."""
        with open(filename or self.opt['dict_file'], 'w', encoding='utf-8') as file:
            file.write(f'{self}\n')

    def load(self, filename) -> None:
        """Do nothing: the tokenizer is loaded with the LLM."""
