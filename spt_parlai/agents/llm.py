"""Load the LLM that the options name, and estimate the memory that training around it takes."""

from __future__ import annotations

from dataclasses import replace

import torch
from parlai.utils import logging
from parlai.utils.distributed import is_distributed

from spt_parlai.dialogue.mutator import packs
from spt_parlai.errors import UsageError, naming
from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.layer_execution import recompute_activations
from spt_parlai.model.loading import load_llm, quantization_config, read_device_map
from spt_parlai.model.memory_estimate import training_memory
from spt_parlai.model.prompted_lm import PromptedLM

# A typical example of ConvAI2, for the estimate of memory: tokens of a dialogue and of a target, turns of a dialogue.
_TYPICAL_LENGTH, _TYPICAL_TARGET, _TYPICAL_TURNS = 256, 16, 6


def device_of(opt, use_cuda: bool) -> torch.device:
    """Return the device of this process."""
    return torch.device('cuda', max(opt['gpu'], 0)) if use_cuda else torch.device('cpu')


def load(opt, use_cuda: bool, dtype: str | None = None) -> CausalLM:
    """Load `--llm` and log its size, dtype and device.

    :param dtype: the dtype, if the agent decides it instead of `--llm-dtype`.
    :raises UsageError: for an LLM that cannot be loaded, or that the method does not work with.
    """
    dtype, device = dtype or _dtype(opt, use_cuda), device_of(opt, use_cuda)
    with naming('--llm-device-map', opt['llm_device_map']):
        placement = read_device_map(opt['llm_device_map'])
    with naming('--llm-quantization', opt['llm_quantization']):
        quantization = quantization_config(opt['llm_quantization'], dtype, device)
    sharding = opt['llm_sharding'] if is_distributed() else 'none'
    with naming('--llm', opt['llm'] if sharding == 'none' else f'{opt["llm"]} with --llm-sharding {sharding}'):
        llm = load_llm(opt['llm'], opt.get('llm_revision'), dtype, device, placement, quantization, sharding)
    logging.info(f'--llm {opt["llm"]}: {llm.num_parameters:,} parameters, {llm.dtype}, on {llm.device}')
    if opt.get('fp16') and not use_cuda:
        logging.warning(f'--fp16 true is for GPUs: on this CPU the LLM runs in {llm.dtype} (see --llm-dtype).')
    if llm.dtype == torch.float16 and llm.device.type == 'cpu':
        logging.warning('float16 is slow on most CPUs; try --llm-dtype float32 or bfloat16 there.')
    if opt['checkpoint_activations']:
        with naming(f'--llm {opt["llm"]} with --checkpoint-activations', 'true'):
            recompute_activations(llm, drops=opt.get('lora_dropout', 0.0) > 0)
    return llm


def _dtype(opt, use_cuda: bool) -> str:
    """Return the dtype of the LLM. ParlAI's `--fp16 true` lets only the LLM run in half precision, on a GPU."""
    if opt.get('fp16') and use_cuda and opt['llm_dtype'] == 'auto':
        return 'bfloat16' if torch.cuda.is_bf16_supported() else 'float16'
    return opt['llm_dtype']


def log_memory(opt, llm: CausalLM, model: PromptedLM) -> None:
    """Log, before training, how much memory a batch of typical ConvAI2 examples takes."""
    length = min(_TYPICAL_LENGTH, opt['text_truncate']) + model.soft_prompts.length
    targets = min(_TYPICAL_TARGET, opt['label_truncate']) * (_TYPICAL_TURNS if packs(opt) else 1)
    line = training_memory(
        llm,
        opt['batchsize'],
        model.prompt_chunk,
        length,
        targets,
        sum(p.numel() for p in model.parameters()),
        opt['optimizer'],
        examples_at_once=max(1, model.tokens_at_once // model.soft_prompts.num_prompts // length),
    )
    logging.info(line)


def what_would_fit(opt, llm: CausalLM) -> str:
    """The options with which training fits on this GPU, or on as many as there are, by the estimate of `spt plan`.

    Nothing is known of a CPU's memory, which other processes share.
    """
    if llm.device.type != 'cuda':
        return ''
    memory = torch.cuda.get_device_properties(llm.device).total_memory
    return plan_for(opt, llm.dtype, memory, torch.cuda.device_count())


def plan_for(opt, dtype: torch.dtype, memory: float, gpus: int) -> str:
    """The options with which the run of `opt` fits on GPUs of this memory; nothing if its LLM's shape is unknown."""
    from spt_parlai.planning.estimate import Run
    from spt_parlai.planning.report import advice, best, machine, options
    from spt_parlai.planning.shape import shape_of

    K = opt.get('num_prompts', 1)
    run = Run('spt' if K > 1 else 'prompt_tuning', K, opt.get('prompt_length', 0), opt['batchsize'])
    run = replace(
        run, dialogue=min(_TYPICAL_LENGTH, opt['text_truncate']), tokens_at_once=opt['tokens_at_once'] or 8192
    )
    try:
        shape = shape_of(opt['llm'], dtype)
    except UsageError:
        return ''
    on = replace(machine(gpus, 1, None, None, None, 'pcie4'), memory=memory)
    found = best(list(options(run, shape, on)))
    return found.words if found is not None else advice(run, shape, on).removeprefix('use ')
