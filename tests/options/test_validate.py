"""Options that cannot work are refused together, in one place, each by its name and value."""

import subprocess
import sys

import pytest
from helpers.option_groups import check_all

from spt_parlai.errors import UsageError, shorten
from spt_parlai.options.parlai_options import validation_needs_replies

OF_THE_PREDICTION = (
    *('ppl', 'ppl_word', 'ppl_byte', 'loss', 'token_acc', 'token_em', 'nll', 'selection', 'contrastive', 'fusion'),
    *('spt_loss', 'prompt_usage_entropy', 'selected_gain', 'best_gain'),
)
NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize(
    'option, value, way_out',
    [
        ('num_prompts', 0, 'at least 1'),
        ('num_prompts', -1, 'at least 1'),
        ('num_prompts', 2.5, 'whole number'),
        ('num_prompts', True, 'whole number'),
        ('num_prompts', '4', 'whole number'),
        ('prompt_length', 0, 'at least 1'),
        ('max_new_tokens', 0, 'at least 1'),
        ('batchsize', 0, 'at least 1'),
        ('lambda_selection', -0.1, 'switches the loss off'),
        ('lambda_contrastive', NAN, 'at least 0'),
        ('lambda_fusion', INF, 'at least 0'),
        ('lambda_fusion', None, 'at least 0'),
        ('learningrate', -1.0, 'at least 0'),
        ('tau_gold', 0.0, 'above 0'),
        ('tau_score', -1.0, 'above 0'),
        ('tau_score', NAN, 'above 0'),
        ('temperature', 0.0, 'above 0'),
        ('similarity_threshold', 101.0, 'between 0 and 100'),
        ('similarity_threshold', -1.0, 'between 0 and 100'),
        ('similarity_threshold', NAN, 'between 0 and 100'),
        ('gold_noise', -0.1, 'at least 0'),
        ('score_noise', NAN, 'at least 0'),
        ('activation_beta', 0.0, 'above 0'),
        ('force_prompt', 4, 'from 0 to 3'),
        ('force_prompt', -2, '-1'),
        ('prompt_chunk', -1, 'at least 0'),
        ('tokens_at_once', -1, 'at least 0'),
        ('max_skipped_steps', 1.5, 'whole number'),
        ('betas', (3.0, 0.999), 'below 1'),
        ('prompt_init', 'file:/no/such.txt', 'no such file'),
        ('prompt_init_noise', -0.1, 'at least 0'),
        ('retriever_learningrate', NAN, 'at least 0'),
        ('prompt_init', 'zeros', 'normal, embedding-scale, vocab'),
        ('llm_dtype', 'int4', 'bfloat16'),
        ('llm_quantization', '2bit', '8bit'),
        ('llm_sharding', 'half', 'hybrid'),
        ('contrastive_text', 'all', 'persona'),
        ('contrastive_pairs', 'some', 'across'),
        ('text_truncate', 0, '-1'),
        ('label_truncate', -2, '-1'),
        ('truncate', 0, '-1'),
        ('text_truncate', 1.5, 'number of tokens'),
        ('model_parallel', True, '--llm-device-map auto'),
        ('data_parallel', True, 'multiprocessing_train'),
        ('person_tokens', True, 'template'),
        ('special_tok_lst', 'A,B', 'no tokens are added'),
        ('history_reversed', True, 'order'),
        ('history_add_global_end_token', 'end', 'no tokens are added'),
        ('ddp_backend', 'zero2', 'only ddp'),
        ('retrieved', 0, 'at least 1'),
        ('retrieved_length', 0, '-1'),
        ('retrieve_per', 'episode', 'dialogue'),
        ('shots', -1, 'at least 0'),
        ('shots', 1.5, 'whole number'),
        ('chat_template', 'true', 'auto'),
        ('instruction', ' ', 'say what'),
        ('api_retries', -1, 'at least 0'),
        ('api_timeout', 0, 'above 0'),
        ('api_temperature', NAN, 'at least 0'),
        ('api_concurrency', 0, 'at least 1'),
        ('init_model', '/no/such/model', 'no such file'),
    ],
)
def test_refuses(option, value, way_out):
    with pytest.raises(UsageError) as error:
        check_all({option: value})
    sentence = str(error.value)
    assert sentence.startswith('--' + option.replace('_', '-')) and str(value) in sentence and way_out in sentence
    assert sentence.endswith('.') and '\n' not in sentence


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'num_prompts': 1, 'prompt_length': 1, 'max_new_tokens': 1, 'batchsize': 1},
        {'lambda_selection': 0, 'lambda_contrastive': 0.0, 'lambda_fusion': 2, 'learningrate': 0.0},
        {'similarity_threshold': 0},
        {'similarity_threshold': 100.0},
        {'tau_gold': 1e-3},
        {'text_truncate': -1, 'label_truncate': None, 'truncate': 8},
        {'person_tokens': False, 'special_tok_lst': None},
        {'ddp_backend': 'ddp'},
        {'persona': '', 'persona_file': None},
        {'init_model': __file__},
        {'init_model': None},
        {'force_prompt': 7, 'num_prompts': 8},
        {'prompt_init': 'text:a|b'},
        {'prompt_chunk': 9},
        {
            'prompt_init': 'file:/no/such.txt',
            'model_file': __file__,
        },  # the prompts are there: how they began is history
        {'init_model': '/no/such/model', 'model_file': __file__},  # a run that continues needs its first model no more
    ],
)
def test_accepts(options):
    check_all(options)


@pytest.mark.parametrize(
    'with_it, sentence',
    [
        ({'llm_device_map': 'auto'}, 'it does not work with --llm-device-map auto; leave one of them out'),
        ({'llm_quantization': '4bit'}, 'it does not work with --llm-quantization 4bit; leave one'),
        ({'llm_compile': True}, 'it does not work with --llm-compile True; leave one'),
        ({'distributed_world_size': 1}, 'it belongs to several processes'),
    ],
)
def test_what_sharding_does_not_work_with(with_it, sentence):
    opt = {'llm_sharding': 'full', 'distributed_world_size': 2, **with_it}
    with pytest.raises(UsageError, match=f"^--llm-sharding 'full': {sentence}"):
        check_all({**opt, 'override': opt})


@pytest.mark.parametrize('persona', ['i ski.', ''])
def test_refuses_two_personas(persona):
    with pytest.raises(UsageError, match='--persona and --persona-file were both given: give one'):
        check_all({'persona': persona, 'persona_file': 'file.txt'})


@pytest.mark.parametrize(
    'given, metric, needed',
    [
        (None, 'ppl', False),
        (None, 'f1', True),
        (False, 'ppl', True),
        (True, 'f1', False),
        *((None, metric, False) for metric in OF_THE_PREDICTION),
    ],
)
def test_validation_writes_replies_only_for_metrics_that_need_them(given, metric, needed):
    opt = {'skip_generation': given, 'validation_metric': metric}
    assert validation_needs_replies(opt) is needed


def test_an_error_ends_a_command_with_its_sentence():
    program = 'from spt_parlai.errors import UsageError; raise UsageError("--x 1: give 2.")'
    ended = subprocess.run([sys.executable, '-W', 'ignore', '-c', program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, '--x 1: give 2.\n')
    assert issubclass(UsageError, ValueError)


def test_shortens_a_long_value():
    assert shorten('x' * 500) == "'" + 'x' * 78 + '…' and shorten(3) == '3'
