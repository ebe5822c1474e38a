"""Every option of ParlAI's own either works or is refused by name; none is accepted and then ignored.

`PARLAI` declares which values work, and which options have an effect only beside others. Whether an option was given is
decided by this command (`opt['override']`): a model file may well hold the `--topk` of the search that it was trained
with when today's search does not use one.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from parlai.utils.distributed import is_distributed

from spt_parlai import trained_models
from spt_parlai.errors import UsageError, refused
from spt_parlai.metrics import registry
from spt_parlai.options.declare import Needs, Opt, Option, OptionGroup, belongs, given, is_number, token_count
from spt_parlai.options.groups import METRICS, SCORED
from spt_parlai.text_files import read_lines

# ---- which values work, and beside what -----------------------------------------------------------------------


def _inference(*searches: str) -> Needs:
    return belongs(f'--inference {" or ".join(searches)}', lambda opt: opt.get('inference') in searches)


def _optimizer(*optimizers: str) -> Needs:
    return belongs(f'--optimizer {" or ".join(optimizers)}', lambda opt: opt.get('optimizer') in optimizers)


def _scheduler(*schedulers: str) -> Needs:
    return belongs(f'--lr-scheduler {" or ".join(schedulers)}', lambda opt: opt.get('lr_scheduler') in schedulers)


def _positive(option: str) -> Callable[[Opt], bool]:
    return lambda opt: (opt.get(option) or 0) > 0


def _on(option: str) -> Callable[[Opt], bool]:
    return lambda opt: bool(opt.get(option))


def _no_effect(way_out: str) -> Needs:
    return Needs(lambda _opt: False, way_out)


def _unsupported(name: str, instead: str) -> Option:
    return Option(name, None, check=lambda opt: f'it does not work with this agent; {instead}' if opt[name] else None)


def _check_betas(opt: Opt) -> str | None:
    works = all(is_number(beta) and 0 <= beta < 1 for beta in opt['betas'] or ())
    return None if works else 'give two numbers of at least 0 and below 1'


def _check_beam_size(opt: Opt) -> str | None:
    works = opt['beam_size'] == 1 or opt.get('inference', 'greedy') != 'greedy'
    return None if works else '--inference greedy follows one hypothesis; add --inference beam'


def _check_block_list(opt: Opt) -> str | None:
    if not opt['beam_block_list_filename']:
        return None
    try:
        has_phrases = any(line.strip() for line in read_lines(opt['beam_block_list_filename']))
    except ValueError as error:
        return f'it cannot be read ({error}); give a text file with a phrase a line'
    return None if has_phrases else 'the file is empty; write one phrase a line'


def _check_verbose_topk(opt: Opt) -> str | None:
    works = opt['verbose_topk'] == -1 or opt['verbose_topk'] >= 1
    return None if works else 'give a whole number of at least 1'


def _check_ddp_backend(opt: Opt) -> str | None:
    return (
        None
        if opt['ddp_backend'] == 'ddp'
        else 'only ddp works here; --llm-sharding full divides the LLM, also where all its weights train'
    )


def _check_init_model(opt: Opt) -> str | None:
    start, model_file = opt['init_model'], opt.get('model_file')
    if not start or os.path.isfile(trained_models.resolve(start)) or (model_file and os.path.isfile(model_file)):
        return None  # a run that continues no longer needs the model it started from
    return 'no such file; give the model file to start from, or leave the option out'


def _check_image_mode(opt: Opt) -> str | None:
    return None if opt['image_mode'] in ('raw', 'no_image_model', 'none') else _READS_TEXT


def _reply_to_go_on_with(name: str, value: object) -> Callable[[Opt], str | None]:
    way_out = '--skip-generation true leaves no reply to go on with; leave one of them out'
    return lambda opt: way_out if opt.get('skip_generation') and opt[name] == value else None


_FROZEN = 'the tokens and embeddings are those of the frozen LLM; leave it out'
_READS_TEXT = 'the LLM reads text only; leave it out'
_NOT_GREEDY = ('beam', 'topk', 'nucleus', 'factual_nucleus', 'delayedbeam', 'delayednucleusbeam')
_LOGS_REPLIES = belongs('--world-logs', lambda opt: bool(opt.get('world_logs') or opt.get('outfile')))  # self_chat's

PARLAI = OptionGroup(
    "ParlAI's own options",
    (
        # the beginning of a run
        Option('batchsize', 1, type=int, at_least=1),
        Option('init_model', None, check=_check_init_model),
        _unsupported(
            'model_parallel', 'use --llm-device-map auto, or --llm-sharding full, to spread the LLM over several GPUs'
        ),
        _unsupported('data_parallel', 'use parlai multiprocessing_train for several GPUs'),
        Option('ddp_backend', 'ddp', check=_check_ddp_backend),
        _unsupported('scripted_model_file', 'parlai torchscript cannot compile a Hugging Face LLM'),
        # replies
        Option('beam_size', 1, type=int, check=_check_beam_size),
        Option('topk', 10, needs=_inference('topk', 'delayedbeam')),
        Option('topp', 0.9, needs=_inference('nucleus', 'factual_nucleus', 'delayednucleusbeam')),
        Option('beam_delay', 30, needs=_inference('delayedbeam', 'delayednucleusbeam')),
        Option('lambda_decay', 0.9, needs=_inference('factual_nucleus')),
        Option('omega_bound', 0.3, needs=_inference('factual_nucleus')),
        Option('p_reset', True, needs=_inference('factual_nucleus')),
        Option('temperature', 1.0, type=float, above=0, needs=_inference(*_NOT_GREEDY)),
        Option('beam_min_length', 1, needs=_inference(*_NOT_GREEDY)),
        Option(
            'beam_length_penalty', 0.65, needs=belongs('a --beam-size above 1', lambda opt: opt.get('beam_size', 1) > 1)
        ),
        Option(
            'beam_block_full_context',
            True,
            needs=belongs('--beam-context-block-ngram', _positive('beam_context_block_ngram')),
        ),
        Option('beam_block_list_filename', None, check=_check_block_list),
        Option(
            'verbose_topk',
            -1,
            check=_check_verbose_topk,
            needs=belongs(
                '--verbose true', lambda opt: opt.get('verbose') or 'token_losses' in str(opt.get('display_add_fields'))
            ),
        ),
        Option(
            'gpu_beam_blocking',
            False,
            needs=_no_effect('its CUDA kernel dates from 2022; leave it out, because n-grams are blocked without it'),
        ),
        Option(
            'compute_tokenized_bleu',
            False,
            needs=_no_effect('it needs fairseq, which these libraries exclude; use --metrics bleu'),
        ),
        Option('use_reply', 'label', check=_reply_to_go_on_with('use_reply', 'model')),
        Option('hide_labels', False, check=_reply_to_go_on_with('hide_labels', True)),
        # optimizer and schedule
        Option('learningrate', 1.0, type=float, at_least=0, note='0 trains nothing'),
        Option('momentum', 0, needs=_optimizer('sgd', 'rmsprop')),
        Option(
            'nesterov',
            True,
            needs=belongs(
                '--optimizer sgd with a --momentum',
                lambda opt: opt.get('optimizer') == 'sgd' and opt.get('momentum', 0) > 0,
            ),
        ),
        Option('betas', (0.9, 0.999), check=_check_betas, needs=_optimizer('adam', 'adamax', 'adafactor')),
        Option('adam_eps', 1e-8, needs=_optimizer('adam', 'adamax')),
        Option('adafactor_eps', (1e-30, 1e-3), needs=_optimizer('adafactor')),
        Option('nus', (0.7,), needs=_no_effect('no optimizer here has them; leave it out')),
        Option('lr_scheduler_patience', 3, needs=_scheduler('reduceonplateau', 'fixed')),
        Option('lr_scheduler_decay', 0.5, needs=_scheduler('reduceonplateau', 'fixed')),
        Option('invsqrt_lr_decay_gamma', -1, needs=_scheduler('invsqrt')),
        Option('warmup_updates', -1, needs=_scheduler('reduceonplateau', 'fixed', 'invsqrt', 'cosine', 'linear')),
        Option('warmup_rate', 1e-4, needs=belongs('--warmup-updates', _positive('warmup_updates'))),
        Option(
            'fp16_impl',
            'safe',
            needs=_no_effect('what trains is always float32 and the LLM has no optimizer; leave it out'),
        ),
        # text
        *(
            Option(name, None, check=token_count(name, 'as many as fit'))
            for name in ('text_truncate', 'label_truncate', 'truncate')
        ),
        _unsupported('person_tokens', 'no tokens are added to a frozen LLM; the template marks the speakers'),
        _unsupported('history_reversed', 'the template needs the dialogue in its order'),
        _unsupported('history_add_global_end_token', 'no tokens are added to a frozen LLM'),
        _unsupported('special_tok_lst', 'no tokens are added to a frozen LLM'),
        Option('force_fp16_tokens', False, needs=_no_effect(_FROZEN)),
        Option('embedding_type', 'random', needs=_no_effect(_FROZEN)),
        Option('embedding_projection', 'random', needs=_no_effect(_FROZEN)),
        Option(
            'split_lines',
            False,
            needs=_no_effect('the template splits the dialogue into persona and turns; leave it out'),
        ),
        Option('delimiter', '\n', needs=_no_effect('the template joins the turns; leave it out')),
        Option('add_p1_after_newln', False, needs=_no_effect('the template marks the speakers; leave it out')),
        Option('image_mode', 'raw', check=_check_image_mode),
        Option('image_size', 256, needs=_no_effect(_READS_TEXT)),
        Option('image_cropsize', 224, needs=_no_effect(_READS_TEXT)),
        # logs
        Option('save_format', 'conversations', needs=_LOGS_REPLIES),
        Option('log_keep_fields', 'all', needs=_LOGS_REPLIES),
        *(
            Option(name, default, needs=belongs(f'--{logger}-log true', _on(f'{logger}_log')))
            for logger, name, default in (
                ('tensorboard', 'tensorboard_logdir', None),
                ('wandb', 'wandb_project', None),
                ('wandb', 'wandb_entity', None),
                ('wandb', 'wandb_name', None),
                ('wandb', 'wandb_log_model', False),
                ('clearml', 'clearml_project_name', 'ParlAI'),
                ('clearml', 'clearml_task_name', 'Default Task'),
            )
        ),
    ),
)

# ---- further rules --------------------------------------------------------------------------------------------


def check_parlai_options(opt: Opt) -> None:
    """Refuse what cannot work of ParlAI's own options, before anything is loaded.

    :raises UsageError: naming the option and the value.
    """
    PARLAI.check(opt)
    if 'freq_bins' in opt and not opt.get('external_dict'):
        raise UsageError(
            "--freq-bins: an LLM's tokenizer counts no words; add --external-dict with a file of parlai build_dict."
        )
    _check_dictionary(opt)
    _check_devices(opt)


def _check_dictionary(opt: Opt) -> None:
    """Refuse options of another dictionary than the LLM's tokenizer."""
    for name, value in given(opt).items():
        if name.startswith(('dict_', 'bpe_')) and value is not False and not _names_our_dictionary(name, value, opt):
            raise refused(name, value, _FROZEN)


def _names_our_dictionary(name: str, value: object, opt: Opt) -> bool:
    """Some of ParlAI's scripts give the file and the class that they would find anyway."""
    if name == 'dict_file':
        return str(value) in {f'{opt.get(of)}.dict' for of in ('model_file', 'init_model')}
    return name == 'dict_class' and str(value).startswith('spt_parlai.')


def _check_devices(opt: Opt) -> None:
    asked = given(opt)
    gpu = -1 if is_distributed() else asked.get('gpu', -1)  # a launcher gives each process its own
    if gpu >= 0 and not torch.cuda.is_available():
        raise refused('gpu', gpu, 'there is no GPU here; leave it out')
    if gpu >= 0 and gpu >= torch.cuda.device_count():
        raise refused('gpu', gpu, f'there are {torch.cuda.device_count()} GPUs here, counted from 0')
    if asked.get('fp16') and asked.get('llm_dtype') == 'float32':
        raise UsageError('--fp16 True and --llm-dtype float32 contradict each other: give one of them.')


# ---- training -------------------------------------------------------------------------------------------------

_NO_OPTIMIZER = {
    'muon': 'it is for matrices only, which soft prompts are not',
    'lbfgs': 'it evaluates the loss several times a step, which ParlAI does not',
    'sparseadam': 'it is for sparse gradients, and those of soft prompts are dense',
    'optimizer': "it is torch's base class",
}
_LOGGERS = {'tensorboard_log': 'tensorboardX', 'wandb_log': 'wandb', 'clearml_log': 'clearml'}


def check_training(opt: Opt) -> None:
    """Refuse what cannot work in a training run, before its agent is built. Raises UsageError naming the option."""
    datatype = opt.get('datatype', 'train')
    if not datatype.startswith('train') or 'evalmode' in datatype:
        raise refused('datatype', datatype, 'training needs train, train:ordered or train:stream')
    if opt.get('interactive_mode'):
        raise refused('interactive_mode', True, 'training has no interactive mode; leave it out')
    if opt.get('use_reply') == 'model':
        raise refused('use_reply', 'model', 'training writes no replies; leave it out')
    if opt.get('hide_labels'):
        raise refused('hide_labels', True, 'validation needs the labels; leave it out')
    _check_optimizer(opt)
    _check_schedule(opt)
    _check_scored_validation(opt)
    _check_compiler(opt)
    for name, module in _LOGGERS.items():
        if opt.get(name) and importlib.util.find_spec(module) is None:
            raise refused(name, True, f'{module} is not installed; pip install {module}')


def _check_optimizer(opt: Opt) -> None:
    optimizer = opt.get('optimizer', 'adam')
    if optimizer in _NO_OPTIMIZER:
        raise refused('optimizer', optimizer, f'{_NO_OPTIMIZER[optimizer]}; adam, adafactor or sgd will do')
    if optimizer == 'rprop' and opt.get('weight_decay'):
        raise refused(
            'weight_decay', opt['weight_decay'], '--optimizer rprop uses the signs of gradients only; leave it out'
        )


def _check_schedule(opt: Opt) -> None:
    scheduler, steps, warmup = opt.get('lr_scheduler'), opt.get('max_train_steps', -1), opt.get('warmup_updates', -1)
    if scheduler in ('cosine', 'linear') and steps <= 0:
        raise refused('lr_scheduler', scheduler, 'its schedule ends at --max-train-steps; give that, too')
    if scheduler in ('cosine', 'linear', 'invsqrt') and 0 < steps <= warmup:
        raise refused('warmup_updates', warmup, f'the run ends before, at --max-train-steps {steps}; make it smaller')
    if scheduler != 'none' and opt.get('lr_scheduler_decay') == 1.0:
        raise refused('lr_scheduler_decay', 1.0, 'ParlAI then has no schedule at all; say so with --lr-scheduler none')


def _check_compiler(opt: Opt) -> None:
    on_cpu = opt.get('no_cuda') or not torch.cuda.is_available()
    if not opt.get('llm_compile') or not on_cpu:
        return
    from spt_parlai.model.layer_execution import has_compiler  # imports transformers' models, which takes seconds

    if not has_compiler():
        raise refused(
            'llm_compile', True, 'there is no C++ compiler here (g++, clang++, $CXX); install one or leave it out'
        )


def _check_scored_validation(opt: Opt) -> None:
    """Options of the metrics of replies do nothing in a run whose validation writes no reply."""
    for option in METRICS.options:
        if option.needs is SCORED:
            replace(option, needs=SCORED._replace(met=validation_needs_replies)).refuse_without_effect(opt)


def validation_needs_replies(opt: Opt) -> bool:
    """Whether validation during training writes replies: as --skip-generation says, or if its metric needs them."""
    if opt.get('skip_generation') is not None:
        return not opt['skip_generation']
    return registry.needs_replies(opt.get('validation_metric', 'ppl'))


def settle_validation(opt: dict[str, Any]) -> None:
    """Set which way `--validation-metric` improves and at which value training stops, unless they are given.

    :raises UsageError: for a direction in which the metric gets worse, or a metric of replies that are not written.
    """
    name = opt['validation_metric']
    metric, asked = registry.find(name), given(opt).get('validation_metric_mode')
    if metric is not None and metric.needs_replies and opt.get('skip_generation'):
        raise UsageError(
            f'--validation-metric {name}: it is computed from replies, and --skip-generation true writes none; leave '
            'one of them out.'
        )
    lower = registry.lower_is_better(name)
    mode = 'min' if lower else 'max'
    if lower is not None and asked not in (None, mode):
        better = 'lower' if lower else 'higher'
        raise UsageError(f'--validation-metric-mode {asked}: {name} is better the {better} it is; leave it out.')
    opt['validation_metric_mode'] = mode = asked or mode
    if 'validation_cutoff' in given(opt):
        return
    if mode == 'max' and metric is not None and metric.highest > 1:
        opt['validation_cutoff'] = 100.0  # ParlAI's 1.0 is perfect for metrics of 0 to 1
    if mode == 'min' and (metric is None or metric.name != 'ppl'):
        opt['validation_cutoff'] = -1.0  # never: ParlAI's 1.0 is a perfect ppl, but a loss can be below it early on
