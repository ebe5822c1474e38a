"""The most similar training dialogues as text before every context.

Two agents do this: the paper's RAG baseline, and SPT with retrieval, which the paper leaves for future work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from parlai.core.metrics import GlobalAverageMetric
from parlai.utils import logging
from parlai.utils.distributed import is_primary_worker, sync_object

from spt_parlai.agents.llm import device_of
from spt_parlai.agents.prompt_tuning import PromptTuningAgent
from spt_parlai.agents.spt import SptAgent
from spt_parlai.checkpoints.files import check_writable
from spt_parlai.dialogue.messages import Dialogue, clean
from spt_parlai.dialogue.template import Context, Tokenize, build_context, fitting, past_dialogue, render
from spt_parlai.dialogue.training_set import settle_training_task, training_dialogues
from spt_parlai.errors import UsageError
from spt_parlai.options.declare import Option, OptionGroup, token_count
from spt_parlai.options.groups import TRAINING_TASK
from spt_parlai.retrieval.encoders import LLM, TextEncoder, TransformerEncoder, WordEncoder
from spt_parlai.retrieval.index import DialogueIndex, fingerprint, load_or_make

MARKER = 'similar dialogue:'
_SHARE = 3  # --retrieved-length -1: retrieved text takes one part in so many of a context's room
_QUERIES_KEPT = 200_000


class RetrievedText:
    """Past dialogues as token ids, the most similar one first.

    A dialogue is never retrieved if the turns so far and the reply to predict follow each other in it. In training
    that is the dialogue itself, the same dialogue told from its other side, and copies of them.

    :param find: (text, utterances) → the dialogues most similar to the text, without those that contain these
        utterances in this order.
    :param tokenize: one piece of the template → token ids.
    :param room: the most tokens to return.
    :param by_turn: whether all turns so far are the query; otherwise the first turn alone is.
    """

    def __init__(
        self,
        find: Callable[[str, tuple[str, ...]], list[Dialogue]],
        tokenize: Tokenize,
        room: int,
        by_turn: bool,
    ):
        self.find = lru_cache(maxsize=_QUERIES_KEPT)(find)
        self.tokenize = tokenize
        self.room = room
        self.by_turn = by_turn

    def before(self, dialogue: Dialogue, replies: Sequence[str]) -> tuple[list[int], bool]:
        """Return (token ids to put before a context, whether a dialogue among them is cut).

        :param replies: the reply to predict where it is known, or its alternatives.
        """
        query = dialogue if self.by_turn else _opening(dialogue)
        if not query.persona and not query.turns:
            return [], False
        said = [turn.text for turn in dialogue.turns] + [reply for reply in map(clean, replies[:1]) if reply]
        ids: list[int] = []
        cut = False
        for past in self.find(render(query), tuple(said[: len(query.turns) + 1]) if replies else ()):
            pieces = past_dialogue(past, MARKER, self.tokenize, not ids)
            kept = fitting(pieces, self.room - len(ids)) or (pieces[0][: self.room] if not ids else [])
            cut |= len(kept) < sum(map(len, pieces))
            ids += kept
        return ids, cut


def _opening(dialogue: Dialogue) -> Dialogue:
    """What is known before the first reply, which stays the same throughout the dialogue."""
    return Dialogue(dialogue.persona, [turn for turn in dialogue.turns[:1] if not turn.own])


RETRIEVAL = OptionGroup(
    'Retrieved dialogues',
    (
        Option(
            'retrieval_encoder',
            'facebook/contriever',
            'Hugging Face id or local folder of a text encoder (mean pooling), or llm: the word embeddings of the '
            'frozen LLM',
        ),
        Option('retrieved', 1, 'how many training dialogues stand before a context', int, at_least=1),
        Option(
            'retrieved_length',
            -1,
            "the most tokens that retrieved dialogues take of the context's room (-1: a third)",
            int,
            check=token_count('retrieved_length', 'a third of the context'),
        ),
        Option(
            'retrieve_per',
            'turn',
            'turn: anew for every context; dialogue: once, from what is known before the first reply',
            choices=('turn', 'dialogue'),
        ),
        Option(
            'retrieval_cache',
            None,
            'folder that keeps the index (default: spt_retrieval in the datapath)',
            'nonestr',
        ),
        TRAINING_TASK,
    ),
)


class RagAgent(PromptTuningAgent):
    """Prompt tuning with the most similar training dialogues before every context (appendix A.6)."""

    kind = 'RagAgent'
    context_is_foreseen = False  # it depends on the retrieved text
    options = (*PromptTuningAgent.options, RETRIEVAL)

    def __init__(self, opt, shared=None):
        if shared is None:
            settle_training_task(opt)
        else:
            self.retrieved = shared['retrieved']
        super().__init__(opt, shared)

    def share(self):
        return {**super().share(), 'retrieved': self.retrieved}

    def build_model(self):
        """Build the model, then read or make the index of the training dialogues.

        :raises UsageError: if the text encoder or the training dialogues cannot be used.
        """
        opt, room = self.opt, self._room()
        dialogues = training_dialogues(opt)
        model = super().build_model()
        index = self._make_index(dialogues, model.llm)

        def find(text: str, without: tuple[str, ...]) -> list[Dialogue]:
            return [dialogues[i] for i in index.most_similar(text, opt['retrieved'], without)]

        self.retrieved = RetrievedText(find, self.dict.piece, room, opt['retrieve_per'] == 'turn')
        return model

    def context_of(self, dialogue: Dialogue, limit: int | None, replies=()) -> Context:
        """Return a context that begins with retrieved text. The retriever scores the context without that text."""
        before, cut = self.retrieved.before(dialogue, replies)
        self.global_metrics.add('rlen', GlobalAverageMetric(len(before)))
        self.global_metrics.add('rtrunc', GlobalAverageMetric(int(cut)))
        tokenize, bos = self.dict.piece, self.dict.bos
        context = build_context(dialogue, tokenize, bos, limit, before)
        if self.num_prompts == 1:  # nothing is scored
            return context
        alone = build_context(dialogue, tokenize, bos, None if limit is None else limit - len(before))
        return replace(context, scored=alone.ids)

    def _room(self) -> int:
        """Return the most tokens that retrieved text may take of a context."""
        asked, most = self.opt['retrieved_length'], self.text_truncate * 2 // _SHARE
        if asked > most:
            raise UsageError(
                f'--retrieved-length {asked}: the context has room for {self.text_truncate} tokens in all, of which '
                f'retrieved text may take {most}; give that, or -1 for a third.'
            )
        return self.text_truncate // _SHARE if asked < 0 else asked

    # ---- the index ------------------------------------------------------------------------------------

    def _make_index(self, dialogues: list[Dialogue], llm) -> DialogueIndex:
        opt, texts = self.opt, [render(dialogue) for dialogue in dialogues]
        if opt['retrieval_encoder'] == LLM:
            encoder: TextEncoder = WordEncoder(llm, self.dict.safe.encode, texts)
        else:
            encoder = TransformerEncoder(opt['retrieval_encoder'], device_of(opt, self.use_cuda))
        trained_with, here = opt.get('retrieval_data'), fingerprint(texts)
        if trained_with not in (None, here):
            logging.warning(
                f'the dialogues of --training-task {opt["training_task"]} are not those this model was trained with.'
            )
        opt.setdefault('retrieval_data', here)
        cache = Path(opt['retrieval_cache'] or Path(opt['datapath']) / 'spt_retrieval').expanduser()
        found = None
        if is_primary_worker():  # the other processes read what this one has written
            found = load_or_make(dialogues, encoder, cache, self._can_keep(cache))
        sync_object(None)
        return found or load_or_make(dialogues, encoder, cache, keep=False)

    def _can_keep(self, cache: Path) -> bool:
        """Return whether the index can be written.

        :raises UsageError: if `--retrieval-cache` names a folder that cannot be written.
        """
        try:
            check_writable(cache / 'index')
        except ValueError as error:
            reason = getattr(error.__cause__, 'strerror', None) or str(error).partition(';')[0]
            if self.opt['retrieval_cache']:
                raise UsageError(
                    f'--retrieval-cache {cache} cannot be written ({reason}): give another folder.'
                ) from error
            logging.warning(
                f'{cache} cannot be written ({reason}), so the index is not kept: '
                '--retrieval-cache gives it another folder.'
            )
            return False
        return True


class SptRagAgent(RagAgent, SptAgent):
    """Selective Prompt Tuning with the most similar training dialogues before every context.

    The retriever of eq. 1 scores the dialogue's own context alone, and the contrast compares such contexts.
    """

    kind = 'SptRagAgent'
    options = (*SptAgent.options, RETRIEVAL)
