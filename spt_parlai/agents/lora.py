"""LoRA: low-rank matrices train beside layers of a frozen LLM; there is no soft prompt."""

from __future__ import annotations

import re

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
from spt_parlai.options.declare import Opt, Option, OptionGroup

ALPHA_PER_RANK = 2.0


def _check_match_spt(opt: Opt) -> str | None:
    matches = re.fullmatch(r'[1-9]\d*,[1-9]\d*', opt['match_spt'])
    return None if matches else 'give K,L, the number of prompts and their tokens, such as 4,8'


LORA = OptionGroup(
    'LoRA',
    (
        Option('lora_rank', 8, 'rank of the matrices beside each adapted layer', int, at_least=1),
        Option(
            'match_spt',
            None,
            'K,L: use the rank that trains about as many values as SPT with K prompts of L tokens',
            'nonestr',
            check=_check_match_spt,
        ),
        Option(
            'lora_alpha',
            None,
            'the output of the matrices is scaled by alpha / rank (default: twice the rank)',
            float,
            above=0,
        ),
        Option(
            'lora_dropout',
            0.0,
            "dropout before the matrices, in training; the LLM's own dropout is always off",
            float,
            at_least=0,
            below=1,
        ),
        Option(
            'lora_targets',
            None,
            "names of the layers to adapt, joined by commas, or all-linear (default: peft's choice for the LLM, "
            "mostly the attention's q_proj,v_proj)",
            'nonestr',
        ),
    ),
)


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

    def tuning_asked_for(self, opt):
        asked = super().tuning_asked_for(opt)
        if not self._matched:
            asked['--lora-rank'] = opt['lora_rank']
        if opt['lora_alpha'] is not None:
            asked['--lora-alpha'] = f'{opt["lora_alpha"]:g}'
        return asked

    def describe_tuning(self):
        return {
            **super().describe_tuning(),
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
