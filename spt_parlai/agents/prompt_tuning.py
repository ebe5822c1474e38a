"""Prompt tuning: one soft prompt before every context of a frozen LLM."""

from __future__ import annotations

import os

from spt_parlai import trained_models
from spt_parlai.agents.base import LLMAgent
from spt_parlai.checkpoints.prompts import read_prompts
from spt_parlai.errors import naming
from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.soft_prompts import COPIES_NOISE, INITIALISATIONS, SOURCES, SoftPromptGroup, initial_prompts
from spt_parlai.options.declare import Opt, Option, OptionGroup


def _check_prompt_init(opt: Opt) -> str | None:
    init = opt['prompt_init']
    if init not in INITIALISATIONS and not (isinstance(init, str) and init.startswith(SOURCES)):
        return f'choose from {", ".join(INITIALISATIONS)}, "text:A|B|…" or "file:PATH"'
    trained = (opt.get('model_file'), f'{opt.get("model_file")}.checkpoint', opt.get('init_model'))
    if not init.startswith('file:') or any(path and os.path.isfile(path) for path in trained):
        return None  # prompts that are trained already need no beginning
    source = init.removeprefix('file:')
    if os.path.exists(os.path.expanduser(trained_models.resolve(source))):
        return None
    return 'no such file; give a .txt with a text a line, or a file or folder with trained prompts'


SOFT_PROMPTS = OptionGroup(
    'Soft prompts',
    (
        Option('prompt_length', 8, 'L, tokens per soft prompt', int, at_least=1),
        Option(
            'prompt_init',
            'normal',
            "normal: N(0, 1); embedding-scale: at the scale of the LLM's word embeddings; vocab: random words; "
            '"text:A|B|…": the words of K texts; "file:PATH": such texts, one a line (.txt), or trained prompts',
            check=_check_prompt_init,
        ),
        Option(
            'prompt_init_noise',
            None,
            'standard deviation of the normal noise on trained prompts from "file:PATH", in units of that of their '
            f'values (default: {COPIES_NOISE} where one trained prompt is the beginning of all K, else 0)',
            float,
            at_least=0,
            note='0 adds none',
        ),
    ),
)


class PromptTuningAgent(LLMAgent):
    """The baseline of tables 1 and 4: SPT with K = 1 and every λ = 0, update for update."""

    kind = 'PromptTuningAgent'
    options = (*LLMAgent.options, SOFT_PROMPTS)

    @property
    def num_prompts(self) -> int:
        return 1

    def build_prompts(self, llm: CausalLM) -> SoftPromptGroup:
        init, noise = self.opt['prompt_init'], self.opt['prompt_init_noise']
        if self.persistence.loads:
            init, noise = 'normal', None
        K, L = self.num_prompts, self.opt['prompt_length']
        given = f'{init} --prompt-init-noise {noise:g}' if noise else init
        with naming(f'--prompt-init {given} with --num-prompts {K} and --prompt-length', L):
            tokens = initial_prompts(init, K, L, llm.embed, self.dict.txt2vec, len(self.dict), read_prompts, noise)
        return SoftPromptGroup(tokens)
