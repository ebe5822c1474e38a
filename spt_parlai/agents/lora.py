"""LoRA: low-rank matrices train beside layers of a frozen LLM; there is no soft prompt."""

from __future__ import annotations

from parlai.utils import logging

from spt_parlai.agents.base import LLMAgent
from spt_parlai.errors import UsageError, naming
from spt_parlai.model.adapters import (
    Lora,
    TunedWeights,
    add_lora,
    check_peft,
    nearest_rank,
    spt_values,
    values_per_rank,
)
from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.options.groups import LORA

ALPHA_PER_RANK = 2.0


class LoraAgent(LLMAgent):
    """The baseline of table 4 (section 5.5), through Hugging Face PEFT."""

    kind = 'LoraAgent'
    options = (*LLMAgent.options, LORA)
    defaults = {'learningrate': 1e-3}

    def __init__(self, opt, shared=None):
        with naming('-m', 'spt_parlai.agents:LoraAgent'):
            check_peft()
        given = opt.get('override') or {}
        if given.get('lora_rank') is not None and given.get('match_spt'):
            raise UsageError('--lora-rank and --match-spt were both given: give one of them.')
        self._matched = None if given.get('lora_rank') is not None else opt.get('match_spt')
        super().__init__(opt, shared)

    def tune(self, llm: CausalLM) -> TunedWeights:
        opt, targets = self.opt, tuple(filter(None, (self.opt['lora_targets'] or '').split(',')))
        chosen = f'--lora-targets {",".join(targets)}' if targets else f'--llm {opt["llm"]} without --lora-targets'
        with naming(chosen):
            rank = self._rank_of_spt(llm, targets) if self._matched else opt['lora_rank']
            alpha = ALPHA_PER_RANK * rank if opt['lora_alpha'] is None else opt['lora_alpha']
            tuned, self._targets = add_lora(llm, Lora(rank, alpha, opt['lora_dropout'], targets))
        self._rank, self._alpha = rank, float(alpha)
        return tuned

    def describe_tuning(self):
        return {
            '--lora-rank': self._rank,
            '--lora-alpha': f'{self._alpha:g}',
            '--lora-targets': ','.join(self._targets),
        }

    def _rank_of_spt(self, llm: CausalLM, targets: tuple[str, ...]) -> int:
        K, L = map(int, self._matched.split(','))
        values, per_rank = spt_values(K, L, llm.hidden_size), values_per_rank(llm, targets)
        rank = nearest_rank(values, per_rank)
        logging.info(
            f'--match-spt {self._matched}: SPT trains {values:,} values around this LLM, LoRA of rank {rank} '
            f'{rank * per_rank:,} ({per_rank:,} a rank).'
        )
        return rank
