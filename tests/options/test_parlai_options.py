"""No option of ParlAI's is taken and then ignored: each has an effect that a test shows, or is refused by name."""

import re
from pathlib import Path

import pytest
from helpers.option_groups import check_all
from helpers.runs import evaluate, train, training_opt
from parlai.scripts.display_model import DisplayModel
from parlai.scripts.eval_wordstat import EvalWordStat
from parlai.scripts.torchscript import TorchScript
from parlai.scripts.train_model import TrainModel

from spt_parlai import agents
from spt_parlai.errors import UsageError, flag
from spt_parlai.options.parlai_options import PARLAI, check_training, settle_validation


@pytest.fixture
def given(tmp_path):
    """given(**options): what a `parlai train_model` with these options checks before anything is loaded."""

    def check(**options):
        opt = training_opt('nowhere', model_file=tmp_path / 'm', **options)
        settle_validation(opt)
        check_training(opt)
        check_all(opt)
        return opt

    return check


@pytest.mark.parametrize(
    'options, named, way_out',
    [
        ({'topk': 4}, '--topk 4', '--inference topk'),
        ({'topp': 0.5}, '--topp 0.5', '--inference nucleus'),
        ({'inference': 'beam', 'topk': 4}, '--topk 4', 'leave it out'),
        ({'beam_delay': 3}, '--beam-delay 3', 'delayedbeam'),
        ({'lambda_decay': 0.5}, '--lambda-decay', 'factual_nucleus'),
        ({'omega_bound': 0.5}, '--omega-bound', 'factual_nucleus'),
        ({'p_reset': False}, '--p-reset False', 'factual_nucleus'),
        ({'temperature': 0.5}, '--temperature 0.5', '--inference'),
        ({'beam_min_length': 3}, '--beam-min-length 3', 'beam'),
        ({'beam_length_penalty': 1.0}, '--beam-length-penalty', '--beam-size'),
        ({'beam_block_full_context': False}, '--beam-block-full-context', '--beam-context-block-ngram'),
        ({'verbose_topk': 5}, '--verbose-topk 5', '--verbose'),
        ({'verbose_topk': 0, 'verbose': True}, '--verbose-topk 0', 'at least 1'),
        ({'gpu_beam_blocking': True}, '--gpu-beam-blocking', 'leave it out'),
        ({'compute_tokenized_bleu': True}, 'bleu', 'fairseq'),
        ({'momentum': 0.9}, '--momentum 0.9', 'sgd'),
        ({'nesterov': False}, '--nesterov', 'sgd'),
        ({'optimizer': 'sgd', 'betas': '0.5,0.9'}, '--betas', 'adam'),
        ({'optimizer': 'sgd', 'adam_eps': 1e-6}, '--adam-eps', 'adam'),
        ({'adafactor_eps': '1e-8,1e-3'}, '--adafactor-eps', 'adafactor'),
        ({'nus': '0.5'}, '--nus', 'leave it out'),
        ({'lr_scheduler': 'invsqrt', 'lr_scheduler_patience': 1}, '--lr-scheduler-patience 1', 'reduceonplateau'),
        ({'lr_scheduler': 'none', 'lr_scheduler_decay': 0.1}, '--lr-scheduler-decay', 'fixed'),
        ({'lr_scheduler_decay': 1.0}, '--lr-scheduler-decay 1.0', '--lr-scheduler none'),
        ({'invsqrt_lr_decay_gamma': 5}, '--invsqrt-lr-decay-gamma 5', 'invsqrt'),
        ({'lr_scheduler': 'none', 'warmup_updates': 5}, '--warmup-updates 5', 'linear'),
        ({'warmup_rate': 0.5}, '--warmup-rate 0.5', '--warmup-updates'),
        ({'lr_scheduler': 'cosine'}, '--lr-scheduler', '--max-train-steps'),
        ({'lr_scheduler': 'linear'}, '--lr-scheduler', '--max-train'),
        ({'lr_scheduler': 'linear', 'max_train_steps': 5, 'warmup_updates': 5}, '--warmup-updates 5', 'smaller'),
        ({'fp16_impl': 'mem_efficient'}, '--fp16-impl', 'float32'),
        ({'force_fp16_tokens': True}, '--force-fp16-tokens', 'frozen'),
        ({'fp16': True, 'llm_dtype': 'float32'}, '--llm-dtype float32', 'contradict'),
        ({'embedding_type': 'glove'}, '--embedding-type', 'frozen'),
        ({'embedding_projection': 'copy'}, '--embedding-projection', 'frozen'),
        ({'split_lines': True}, '--split-lines', 'template'),
        ({'delimiter': ' '}, '--delimiter', 'template'),
        ({'add_p1_after_newln': True}, '--add-p1-after-newln', 'template'),
        ({'dict_tokenizer': 'bpe'}, '--dict-tokenizer', 'frozen'),
        ({'dict_lower': True}, '--dict-lower', 'frozen'),
        ({'dict_file': '/other.dict'}, '--dict-file', 'leave it out'),
        ({'dict_class': 'parlai.core.dict:DictionaryAgent'}, '--dict-class', 'frozen'),
        ({'bpe_dropout': 0.1}, '--bpe-dropout', 'frozen'),
        ({'bpe_debug': True}, '--bpe-debug', 'frozen'),
        ({'image_mode': 'resnet152'}, '--image-mode', 'text only'),
        ({'image_size': 64}, '--image-size', 'text only'),
        ({'image_cropsize': 64}, '--image-cropsize', 'text only'),
        ({'save_format': 'parlai'}, '--save-format', '--world-logs'),
        ({'log_keep_fields': 'text'}, '--log-keep-fields', '--world-logs'),
        ({'tensorboard_logdir': 'x'}, '--tensorboard-logdir', '--tensorboard-log'),
        ({'wandb_project': 'x'}, '--wandb-project', '--wandb-log'),
        ({'wandb_name': 'x'}, '--wandb-name', '--wandb-log'),
        ({'wandb_entity': 'x'}, '--wandb-entity', '--wandb-log'),
        ({'wandb_log_model': True}, '--wandb-log-model', '--wandb-log'),
        ({'clearml_project_name': 'x'}, '--clearml-project-name', '--clearml-log'),
        ({'clearml_task_name': 'x'}, '--clearml-task-name', '--clearml-log'),
        ({'beam_block_list_filename': '/none'}, '--beam-block-list-filename', 'No such file'),
        ({'datatype': 'valid'}, '--datatype', 'train:stream'),
        ({'datatype': 'train:evalmode'}, '--datatype', 'train:stream'),
        ({'interactive_mode': True}, '--interactive-mode', 'leave it out'),
        ({'use_reply': 'model'}, '--use-reply', 'leave it out'),
        ({'hide_labels': True}, '--hide-labels', 'labels'),
        ({'validation_metric_mode': 'max'}, '--validation-metric-mode max', 'lower'),
        ({'validation_metric': 'f1', 'skip_generation': True}, '--validation-metric f1', '--skip-generation true'),
        ({'validation_metric': 'f1', 'validation_metric_mode': 'min'}, '--validation-metric-mode min', 'higher'),
        *(({'optimizer': name}, '--optimizer', 'adam') for name in ('muon', 'lbfgs', 'sparseadam', 'optimizer')),
        ({'optimizer': 'rprop', 'weight_decay': 0.1}, '--weight-decay 0.1', 'leave it out'),
    ],
)
def test_refused(given, options, named, way_out):
    with pytest.raises(UsageError) as error:
        given(**options)
    sentence = str(error.value)
    assert (
        named in sentence
        and way_out in sentence
        and sentence.startswith('--')
        and sentence.endswith('.')
        and '\n' not in sentence
    )


@pytest.mark.parametrize(
    'options',
    [
        {'inference': 'topk', 'topk': 4, 'temperature': 0.5},
        {'inference': 'factual_nucleus', 'p_reset': False, 'topp': 0.5},
        {'inference': 'delayedbeam', 'beam_size': 2, 'beam_delay': 3, 'topk': 3},
        {'verbose': True, 'verbose_topk': 5},
        {'inference': 'beam', 'beam_size': 3, 'beam_min_length': 2, 'beam_length_penalty': 1.0},
        {'beam_context_block_ngram': 2, 'beam_block_full_context': False},
        {'optimizer': 'sgd', 'momentum': 0.9, 'nesterov': False},
        {'betas': '0.5,0.9', 'adam_eps': 1e-6},
        {'optimizer': 'adafactor', 'adafactor_eps': '1e-8,1e-3'},
        {'lr_scheduler': 'cosine', 'max_train_steps': 9, 'warmup_updates': 3, 'warmup_rate': 0.5},
        {'world_logs': 'x', 'save_format': 'parlai', 'log_keep_fields': 'text'},
        {'tensorboard_log': True, 'tensorboard_logdir': 'x'},
        {
            'topk': 10,
            'topp': 0.9,
            'temperature': 1.0,
            'betas': '0.9,0.999',
            'adam_eps': 1e-8,
            'delimiter': '\n',
            'nus': '0.7',
            'momentum': 0,
            'nesterov': True,
            'adafactor_eps': '1e-30,1e-3',
            'dict_lower': False,
            'image_mode': 'no_image_model',
        },
        {'use_reply': 'none'},
        {'datatype': 'train:ordered:stream'},
        {'optimizer': 'rprop'},
    ],
)
def test_accepted(given, options):
    given(**options)


def test_the_dictionary_that_parlais_scripts_name_is_ours(given, tmp_path):
    given(dict_file=tmp_path / 'm.dict', dict_class='spt_parlai.dialogue.dictionary:TokenizerDictionary')


@pytest.mark.parametrize(
    'metric, mode, cutoff',
    [
        ('ppl', 'min', 1.0),
        ('selection', 'min', -1.0),
        ('loss', 'min', -1.0),
        ('token_acc', 'max', 1.0),
        ('bleu-4', 'max', 1.0),
        ('rouge-L', 'max', 1.0),
        ('hits@1', 'max', 1.0),
        ('convai2/nll', 'min', -1.0),
        ('prompt_usage_entropy', 'max', 1.0),
        ('selected_gain', 'max', 100.0),
        ('other', 'max', 1.0),
        ('sacrebleu', 'max', 100.0),
        ('rouge1', 'max', 100.0),
        ('dist', 'max', 100.0),
        ('ppl_word', 'min', -1.0),
    ],
)
def test_validation_knows_which_way_a_metric_improves(given, metric, mode, cutoff):
    opt = given(validation_metric=metric)
    assert (opt['validation_metric_mode'], opt['validation_cutoff']) == (mode, cutoff)
    assert given(validation_metric=metric, validation_cutoff=0.3)['validation_cutoff'] == 0.3


@pytest.fixture(scope='module')
def model_file(tiny_llms, tmp_path_factory):
    path = tmp_path_factory.mktemp('stored') / 'm'
    train(path, tiny_llms.opt, max_train_steps=1, inference='topk', topk=3, temperature=0.5, betas='0.5,0.9')
    return path


def test_what_a_model_file_remembers_is_no_mistake_in_another_command(model_file):
    assert evaluate(model_file, inference='greedy', num_examples=4)['exs'] == 4


def test_a_reply_is_needed_to_go_on_with_it(model_file):
    for option, value in (('hide_labels', True), ('use_reply', 'model')):
        with pytest.raises(UsageError, match='--skip-generation true'):
            evaluate(model_file, num_examples=4, skip_generation=True, **{option: value})
        assert evaluate(model_file, num_examples=4, **{option: value})['exs'] == 4


def test_scripts_that_cannot_work_say_so(model_file, tmp_path):
    with pytest.raises(UsageError, match='torchscript'):
        TorchScript.main(model_file=str(model_file), scripted_model_file=str(tmp_path / 'x'), input=['hi'])
    with pytest.raises(UsageError, match='--external-dict'):
        EvalWordStat.main(model_file=str(model_file), task='integration_tests')
    with pytest.raises(UsageError, match='--verbose-topk 9999: the LLM has 340 tokens'):
        DisplayModel.main(model_file=str(model_file), task='integration_tests', verbose=True, verbose_topk=9999)


# What ParlAI does with these before it asks any agent is shown by its own tests.
NOT_FOR_AGENTS = ('help', 'helpall', 'is_debug', 'display_examples', 'log_every_n_secs', 'loglevel', 'download_path')


@pytest.fixture(scope='module')
def sources():
    """The text of all tests."""
    return '\n'.join(path.read_text(encoding='utf-8') for path in Path(__file__).parents[1].rglob('*.py'))


@pytest.mark.parametrize('agent', agents.__all__)
def test_no_option_is_without_a_test(agent, sources):
    """Every option that an agent offers stands in some test: by name, as a keyword or as on the command line."""
    parser = TrainModel.setup_args()
    parser.parse_args(['-m', f'spt_parlai.agents:{agent}'])
    for action in parser._actions:
        name = action.dest
        if not name.startswith(('dict_', 'bpe_')) and name not in NOT_FOR_AGENTS:
            shown = [f"'{name}'", rf'\b{name}=', *(rf"'--?{string.strip('-')}\b" for string in action.option_strings)]
            assert re.search('|'.join(shown), sources), name


@pytest.mark.parametrize(
    'option', [option for option in PARLAI.options if option.needs], ids=lambda option: option.name
)
def test_what_needs_another_option_is_refused_without_it(option):
    opt = {option.name: 'other', 'override': {option.name: 'other'}}
    with pytest.raises(UsageError, match=f'^{flag(option.name)} .*{re.escape(option.needs.way_out)}'):
        option.refuse_without_effect(opt)
    option.refuse_without_effect({option.name: 'other', 'override': {}})  # of the model file, not of this command
    option.refuse_without_effect({option.name: option.default, 'override': {option.name: option.default}})
