"""ParlAI's own options: each works, or is refused by name. None is taken and then ignored.

What counts is what this command asked for (`opt['override']`): a model file may well remember a `--topk` of the search it was
trained with when today's search has no use for one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from parlai.utils.distributed import is_distributed

from spt_parlai.errors import UsageError, shorten
from spt_parlai.model.layer_execution import has_compiler
from spt_parlai.options.declare import skips_generation

_FROZEN = 'the tokens and embeddings are those of the frozen LLM; leave it out'
_TRAINED_IN_FLOAT32 = 'what trains is float32 always and the LLM has no optimizer; leave it out'
_NO_OPTIMIZER = {
    'muon': 'it is for matrices alone, and the soft prompts are none',
    'lbfgs': 'it evaluates the loss several times a step, which ParlAI does not',
    'sparseadam': 'it is for sparse gradients, and those of soft prompts are dense',
    'optimizer': "it is torch's base class",
}


class Needs(NamedTuple):
    """An option that does something only under a condition. default: the value that asks for nothing."""

    default: Any
    met: Callable[[Any], bool]
    way_out: str


def _one_of(name: str, *values: str) -> Callable[[Any], bool]:
    return lambda opt: opt.get(name) in values


def _on(name: str) -> Callable[[Any], bool]:
    return lambda opt: bool(opt.get(name))


def _positive(name: str) -> Callable[[Any], bool]:
    return lambda opt: (opt.get(name) or 0) > 0


def _logged(opt) -> bool:
    return bool(opt.get('world_logs') or opt.get('outfile'))  # self_chat has the latter


def _scores_replies(opt) -> bool:
    return opt.get('paper_metrics', True) and not opt.get('interactive_mode') and not skips_generation(opt)


def _asks_an_endpoint(opt) -> bool:
    return str(opt.get('model')).endswith(':InContextApiAgent')


def _never(_opt) -> bool:
    return False


def _belongs(default, met: Callable[[Any], bool], to: str) -> Needs:
    return Needs(default, met, f'it belongs to {to}; add that or leave it out')


def _inference(default, *searches: str) -> Needs:
    return _belongs(default, _one_of('inference', *searches), f'--inference {" or ".join(searches)}')


def _optimizer(default, *optimizers: str) -> Needs:
    return _belongs(default, _one_of('optimizer', *optimizers), f'--optimizer {" or ".join(optimizers)}')


def _scheduler(default, *schedulers: str) -> Needs:
    return _belongs(default, _one_of('lr_scheduler', *schedulers), f'--lr-scheduler {" or ".join(schedulers)}')


def _with(default, option: str) -> Needs:
    return _belongs(default, _on(option), f'--{option.replace("_", "-")} true')


_SCORED = 'an evaluation that scores replies (--paper-metrics true, --skip-generation false)'
_NOT_GREEDY = ('beam', 'topk', 'nucleus', 'factual_nucleus', 'delayedbeam', 'delayednucleusbeam')
_EFFECTS = {
    # replies
    'topk': _inference(10, 'topk', 'delayedbeam'),
    'topp': _inference(0.9, 'nucleus', 'factual_nucleus', 'delayednucleusbeam'),
    'beam_delay': _inference(30, 'delayedbeam', 'delayednucleusbeam'),
    'lambda_decay': _inference(0.9, 'factual_nucleus'),
    'omega_bound': _inference(0.3, 'factual_nucleus'),
    'p_reset': _inference(True, 'factual_nucleus'),
    'temperature': _inference(1.0, *_NOT_GREEDY),
    'beam_min_length': _inference(1, *_NOT_GREEDY),
    'beam_length_penalty': _belongs(0.65, lambda opt: opt.get('beam_size', 1) > 1, 'a --beam-size above 1'),
    'beam_block_full_context': _belongs(True, _positive('beam_context_block_ngram'), '--beam-context-block-ngram'),
    'verbose_topk': _belongs(
        -1, lambda opt: opt.get('verbose') or 'token_losses' in str(opt.get('display_add_fields')), '--verbose true'
    ),
    'gpu_beam_blocking': Needs(
        False, _never, 'its CUDA kernel is of 2022; leave it out, n-grams are blocked without it'
    ),
    'compute_tokenized_bleu': Needs(
        False, _never, 'it needs fairseq, which these libraries exclude; use --metrics bleu'
    ),
    # optimizer and schedule
    'momentum': _optimizer(0, 'sgd', 'rmsprop'),
    'nesterov': _belongs(
        True,
        lambda opt: opt.get('optimizer') == 'sgd' and opt.get('momentum', 0) > 0,
        '--optimizer sgd with a --momentum',
    ),
    'betas': _optimizer((0.9, 0.999), 'adam', 'adamax', 'adafactor'),
    'adam_eps': _optimizer(1e-8, 'adam', 'adamax'),
    'adafactor_eps': _optimizer((1e-30, 1e-3), 'adafactor'),
    'nus': Needs((0.7,), _never, 'no optimizer here has them; leave it out'),
    'lr_scheduler_patience': _scheduler(3, 'reduceonplateau', 'fixed'),
    'lr_scheduler_decay': _scheduler(0.5, 'reduceonplateau', 'fixed'),
    'invsqrt_lr_decay_gamma': _scheduler(-1, 'invsqrt'),
    'warmup_updates': _scheduler(-1, 'reduceonplateau', 'fixed', 'invsqrt', 'cosine', 'linear'),
    'warmup_rate': _belongs(1e-4, _positive('warmup_updates'), '--warmup-updates'),
    'fp16_impl': Needs('safe', _never, _TRAINED_IN_FLOAT32),
    # text
    'force_fp16_tokens': Needs(False, _never, _FROZEN),
    'embedding_type': Needs('random', _never, _FROZEN),
    'embedding_projection': Needs('random', _never, _FROZEN),
    'split_lines': Needs(False, _never, 'the template splits the dialogue into persona and turns; leave it out'),
    'delimiter': Needs('\n', _never, 'the template joins the turns; leave it out'),
    'add_p1_after_newln': Needs(False, _never, 'the template marks the speakers; leave it out'),
    'image_size': Needs(256, _never, 'the LLM reads text alone; leave it out'),
    'image_cropsize': Needs(224, _never, 'the LLM reads text alone; leave it out'),
    # logs
    'save_format': _belongs('conversations', _logged, '--world-logs'),
    'log_keep_fields': _belongs('all', _logged, '--world-logs'),
    'tensorboard_logdir': _with(None, 'tensorboard_log'),
    'wandb_project': _with(None, 'wandb_log'),
    'wandb_entity': _with(None, 'wandb_log'),
    'wandb_name': _with(None, 'wandb_log'),
    'wandb_log_model': _with(False, 'wandb_log'),
    'clearml_project_name': _with('ParlAI', 'clearml_log'),
    'clearml_task_name': _with('Default Task', 'clearml_log'),
    # in-context learning and retrieval
    **{
        f'api_{name}': Needs(default, _asks_an_endpoint, 'use -m spt_parlai.agents:InContextApiAgent or leave it out')
        for name, default in (
            ('base', None),
            ('model', None),
            ('key_env', 'OPENAI_API_KEY'),
            ('temperature', 0.0),
            ('parameters', '{}'),
            ('timeout', 60.0),
            ('retries', 6),
            ('concurrency', 8),
        )
    },
    # the paper's metrics
    'trim_responses': _belongs(False, _scores_replies, _SCORED),
    'bertscore': _belongs('none', _scores_replies, _SCORED),
    'bertscore_layer': _belongs(None, lambda opt: opt.get('bertscore', 'none') != 'none', '--bertscore'),
}
_OF_ANOTHER_DICTIONARY = ('dict_', 'bpe_')
_LOGGERS = {'tensorboard_log': 'tensorboardX', 'wandb_log': 'wandb', 'clearml_log': 'clearml'}


def check_effects(opt) -> None:
    """Refuse an option of ParlAI's that was given and would do nothing, or cannot work. Raises UsageError naming it."""
    given = {name: value for name, value in (opt.get('override') or {}).items() if value is not None}
    for name, needs in _EFFECTS.items():
        if name in given and not _same(given[name], needs.default) and not needs.met(opt):
            raise _refused(name, given[name], needs.way_out)
    if opt.get('scripted_model_file'):
        raise _refused(
            'scripted_model_file',
            opt['scripted_model_file'],
            'a Hugging Face LLM does not compile with parlai torchscript',
        )
    if 'freq_bins' in opt and not opt.get('external_dict'):
        raise UsageError(
            "--freq-bins: an LLM's tokenizer counts no words; add --external-dict with a file of parlai build_dict."
        )
    _check_dictionary(opt, given)
    _check_devices(opt, given)
    if opt.get('beam_block_list_filename'):
        _check_block_list(opt['beam_block_list_filename'])
    if opt.get('verbose_topk', -1) == 0 or opt.get('verbose_topk', -1) < -1:
        raise _refused('verbose_topk', opt['verbose_topk'], 'give a whole number of at least 1')
    if opt.get('image_mode', 'raw') not in ('raw', 'no_image_model', 'none'):
        raise _refused('image_mode', opt['image_mode'], 'the LLM reads text alone; leave it out')
    if opt.get('skip_generation') and not opt.get('training_loop'):
        for name, value in (('use_reply', 'model'), ('hide_labels', True)):
            if opt.get(name) == value:
                raise _refused(
                    name, value, '--skip-generation true leaves no reply to go on with; leave one of them out'
                )
    if opt.get('training_loop'):
        _check_training(opt)


def _check_dictionary(opt, given) -> None:
    own_files = {f'{opt.get(name)}.dict' for name in ('model_file', 'init_model')}
    for name, value in given.items():
        if not name.startswith(_OF_ANOTHER_DICTIONARY) or value is False:
            continue
        if (
            name == 'dict_file'
            and str(value) in own_files
            or name == 'dict_class'
            and str(value).startswith('spt_parlai.')
        ):
            continue  # ParlAI's scripts and tests name what they would find anyway
        raise _refused(name, value, _FROZEN)


def _check_devices(opt, given) -> None:
    gpu = -1 if is_distributed() else given.get('gpu', -1)  # a launcher gives each process its own
    if gpu >= 0 and not torch.cuda.is_available():
        raise _refused('gpu', gpu, 'there is no GPU here; leave it out')
    if gpu >= 0 and gpu >= torch.cuda.device_count():
        raise _refused('gpu', gpu, f'there are {torch.cuda.device_count()} GPUs here, counted from 0')

    if given.get('fp16') and given.get('llm_dtype') == 'float32':
        raise UsageError('--fp16 True and --llm-dtype float32 contradict each other: give one of them.')


def _check_block_list(path: str) -> None:
    try:
        with open(path, encoding='utf-8') as file:
            phrases = [line for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'not UTF-8 text'
        way_out = f'it cannot be read ({reason}); give a text file with a phrase a line'
        raise _refused('beam_block_list_filename', path, way_out) from error
    if not phrases:
        raise _refused('beam_block_list_filename', path, 'the file is empty; write one phrase a line')


def _check_training(opt) -> None:
    datatype, optimizer, scheduler = opt.get('datatype', 'train'), opt.get('optimizer', 'adam'), opt.get('lr_scheduler')
    if not datatype.startswith('train') or 'evalmode' in datatype:
        raise _refused('datatype', datatype, 'training needs train, train:ordered or train:stream')
    if opt.get('interactive_mode'):
        raise _refused('interactive_mode', True, 'training has no interactive mode; leave it out')
    if opt.get('use_reply') == 'model':
        raise _refused('use_reply', 'model', 'training writes no replies; leave it out')
    if opt.get('hide_labels'):
        raise _refused('hide_labels', True, 'validation needs the labels; leave it out')
    if optimizer in _NO_OPTIMIZER:
        raise _refused('optimizer', optimizer, f'{_NO_OPTIMIZER[optimizer]}; adam, adafactor or sgd will do')
    if optimizer == 'rprop' and opt.get('weight_decay'):
        raise _refused(
            'weight_decay', opt['weight_decay'], '--optimizer rprop looks at signs alone and has none; leave it out'
        )
    steps, warmup = opt.get('max_train_steps', -1), opt.get('warmup_updates', -1)
    if scheduler in ('cosine', 'linear') and steps <= 0:
        raise _refused('lr_scheduler', scheduler, 'it ends at --max-train-steps, which must be given')
    if scheduler in ('cosine', 'linear', 'invsqrt') and 0 < steps <= warmup:
        raise _refused('warmup_updates', warmup, f'the run ends before, at --max-train-steps {steps}; make it smaller')
    if scheduler != 'none' and opt.get('lr_scheduler_decay') == 1.0:
        raise _refused('lr_scheduler_decay', 1.0, 'ParlAI then has no schedule at all; say so with --lr-scheduler none')
    on_cpu = opt.get('no_cuda') or not torch.cuda.is_available()
    if opt.get('llm_compile') and on_cpu and not has_compiler():
        raise _refused(
            'llm_compile', True, 'there is no C++ compiler here (g++, clang++, $CXX); install one or leave it out'
        )
    for name, module in _LOGGERS.items():
        if opt.get(name) and importlib.util.find_spec(module) is None:
            raise _refused(name, True, f'{module} is not installed; pip install {module}')


def _same(given, default) -> bool:
    """Are these one value? Tuples may come as lists or as text, numbers as text."""
    if isinstance(default, (tuple, list)):
        if isinstance(given, str):
            given = given.strip('()[] ').split(',')
        try:
            return tuple(map(float, given)) == tuple(default)
        except (TypeError, ValueError):
            return False
    if isinstance(default, str) and isinstance(given, str):
        return given.encode().decode('unicode_escape') == default
    return given == default


def _refused(name: str, value, way_out: str) -> UsageError:
    return UsageError(f'--{name.replace("_", "-")} {shorten(value)}: {way_out}.')
