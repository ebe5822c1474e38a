"""The most similar training dialogues, as text before every context.

Retrieval before prompts: the paper's RAG baseline, and SPT with retrieval, which the paper leaves for future work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from parlai.core.metrics import GlobalAverageMetric
from parlai.utils import logging
from parlai.utils.distributed import is_primary_worker, sync_object

from spt_parlai.agents.prompt_tuning import PromptTuningAgent
from spt_parlai.agents.spt import SptAgent
from spt_parlai.checkpoints.files import check_writable
from spt_parlai.dialogue.messages import Dialogue, clean
from spt_parlai.dialogue.template import Context, build_context, fitting, past_dialogue, render
from spt_parlai.dialogue.training_set import settle_training_task, training_dialogues
from spt_parlai.errors import UsageError
from spt_parlai.options.groups import RETRIEVAL
from spt_parlai.retrieval.encoders import LLM, TransformerEncoder, WordEncoder
from spt_parlai.retrieval.index import DialogueIndex, fingerprint, load_or_make

MARKER = 'similar dialogue:'
_SHARE = 3  # --retrieved-length -1: one part of so many of the context's room
_QUERIES_KEPT = 200_000


class Retrieving:
    """A mixin before a `PromptedAgent`.

    What is retrieved depends on the persona and the turns so far (`--retrieve-per dialogue`: the first turn alone), and never
    is a dialogue in which these turns and the reply that is to be given follow each other: in training that is the dialogue
    itself, the same dialogue as its other side had it, and copies of them.
    """

    @classmethod
    def add_cmdline_args(cls, parser, partial_opt=None):
        super().add_cmdline_args(parser, partial_opt)
        RETRIEVAL.add_to(parser)
        return parser

    def __init__(self, opt, shared=None):
        if shared is None:
            settle_training_task(opt)
        else:
            self._retrieve = shared['retrieve']
        super().__init__(opt, shared)

    def share(self):
        return {**super().share(), 'retrieve': self._retrieve}

    def build_model(self):
        self._check_room()
        dialogues = training_dialogues(self.opt)
        model = super().build_model()
        found = self._make_index(dialogues, model.llm)
        self._retrieve = lru_cache(maxsize=_QUERIES_KEPT)(
            lambda text, without: [found.dialogues[i] for i in found.most_similar(text, self.opt['retrieved'], without)]
        )
        return model

    @property
    def _room(self) -> int:
        """The most tokens that retrieved text takes of a context."""
        asked = self.opt['retrieved_length']
        return self.text_truncate // _SHARE if asked < 0 else asked

    def _check_room(self) -> None:
        most = self.text_truncate * 2 // _SHARE
        if self._room > most:
            raise UsageError(
                f'--retrieved-length {self.opt["retrieved_length"]}: the context has room for {self.text_truncate} tokens in all, of which '
                f'retrieved text may take {most}; give that, or -1 for a third.'
            )

    # ---- the index ------------------------------------------------------------------------------------

    def _make_index(self, dialogues: list[Dialogue], llm) -> DialogueIndex:
        opt, texts = self.opt, [render(dialogue) for dialogue in dialogues]
        if opt['retrieval_encoder'] == LLM:
            encoder = WordEncoder(llm, lambda text: self.dict.tokenizer.encode(text, add_special_tokens=False), texts)
        else:
            encoder = TransformerEncoder(opt['retrieval_encoder'], self._device())
        trained_with, here = opt.get('retrieval_data'), fingerprint(texts)
        if trained_with not in (None, here):
            logging.warning(
                f'the dialogues of --training-task {opt["training_task"]} are not those this model was trained with.'
            )
        opt.setdefault('retrieval_data', here)
        cache = Path(opt['retrieval_cache'] or Path(opt['datapath']) / 'spt_retrieval').expanduser()
        found = None
        if is_primary_worker():  # the others find what it has written
            found = load_or_make(dialogues, encoder, cache, self._can_keep(cache))
        sync_object(None)
        return found or load_or_make(dialogues, encoder, cache, keep=False)

    def _can_keep(self, cache: Path) -> bool:
        """Can the index be written? Only a folder that was asked for must."""
        try:
            check_writable(cache / 'index')
        except ValueError as error:
            reason = getattr(error.__cause__, 'strerror', None) or str(error).partition(';')[0]
            if self.opt['retrieval_cache']:
                raise UsageError(
                    f'--retrieval-cache {cache} cannot be written ({reason}): give another folder.'
                ) from error
            logging.warning(
                f'{cache} cannot be written ({reason}), so an index is not kept: --retrieval-cache gives it another folder.'
            )
            return False
        return True

    # ---- the context ----------------------------------------------------------------------------------

    def context_of(self, dialogue: Dialogue, limit: int | None, replies=()) -> Context:
        before = self._text_before(dialogue, replies)
        tokenize, bos = self.dict.piece, self.dict.bos
        context = build_context(dialogue, tokenize, bos, limit, before)
        if self.num_prompts == 1:  # nothing is scored
            return context
        alone = build_context(dialogue, tokenize, bos, None if limit is None else limit - len(before))
        return replace(context, scored=alone.ids)

    def _text_before(self, dialogue: Dialogue, replies: Sequence[str]) -> list[int]:
        """The most similar dialogues as token ids, the best first, until there is no more room."""
        query = dialogue if self.opt['retrieve_per'] == 'turn' else _opening(dialogue)
        if not query.persona and not query.turns:
            return []
        said = [turn.text for turn in dialogue.turns] + [reply for reply in map(clean, replies[:1]) if reply]
        ids: list[int] = []
        cut = False
        for past in self._retrieve(render(query), tuple(said[: len(query.turns) + 1]) if replies else ()):
            pieces = past_dialogue(past, MARKER, self.dict.piece, not ids)
            kept = fitting(pieces, self._room - len(ids)) or (pieces[0][: self._room] if not ids else [])
            cut |= len(kept) < sum(map(len, pieces))
            ids += kept
        self.global_metrics.add('rlen', GlobalAverageMetric(len(ids)))
        self.global_metrics.add('rtrunc', GlobalAverageMetric(int(cut)))
        return ids


def _opening(dialogue: Dialogue) -> Dialogue:
    """What is known before the first reply, which stays the same throughout the dialogue."""
    return Dialogue(dialogue.persona, [turn for turn in dialogue.turns[:1] if not turn.own])


class RagAgent(Retrieving, PromptTuningAgent):
    """Prompt tuning with the most similar training dialogues before every context (appendix A.6)."""

    kind = 'RagAgent'


class SptRagAgent(Retrieving, SptAgent):
    """Selective Prompt Tuning with the most similar training dialogues before every context.

    The retriever of eq. 1 scores the dialogue's own context alone, and the contrast compares such contexts.
    """

    kind = 'SptRagAgent'
