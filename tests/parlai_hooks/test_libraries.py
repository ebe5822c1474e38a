"""Each test shows one ParlAI break repaired; all fail without ``spt_parlai.parlai_hooks.libraries``.

Others show that the hooks leave the agents of other packages alone.
"""

import numpy as np
import pytest
from parlai.core.agents import create_agent
from parlai.core.dict import DictionaryAgent
from parlai.core.metrics import BleuMetric, RougeMetric
from parlai.core.opt import Opt
from parlai.core.worlds import create_task
from parlai.scripts import train_model
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.train_model import TrainModel
from parlai.utils import distributed

import spt_parlai  # noqa: F401  (applies the patches)
from spt_parlai.errors import UsageError
from spt_parlai.parlai_hooks import libraries


@pytest.fixture(scope='module')
def task(tmp_path_factory):
    """Options of a task with a few short dialogues."""
    folder = tmp_path_factory.mktemp('data')
    lines = [f'text:how are you {i} ?\tlabels:i am fine {i} .\tepisode_done:True' for i in range(4)]
    (folder / 'chat.txt').write_text('\n'.join(lines) + '\n')
    return {
        'task': 'fromfile:parlaiformat',
        'fromfile_datapath': str(folder / 'chat.txt'),
        'fromfile_datatype_extension': False,
        'datapath': str(folder),
    }


@pytest.fixture(scope='module')
def model_file(task, tmp_path_factory):
    """A tiny transformer, trained with ParlAI's default scheduler."""
    path = str(tmp_path_factory.mktemp('model') / 'model')
    TrainModel.main(
        **task,
        model='transformer/generator',
        n_layers=1,
        n_heads=2,
        embedding_size=8,
        ffn_size=8,
        truncate=8,
        batchsize=2,
        max_train_steps=2,
        model_file=path,
    )
    return path


def evaluate(task, model_file, **options):
    return EvalModel.main(**task, model_file=model_file, datatype='valid', num_examples=4, **options)


def test_training_and_evaluation_with_the_default_scheduler(task, model_file):
    assert evaluate(task, model_file)['exs'].value() == 4


@pytest.mark.parametrize('beam_size', [1, 3])
@pytest.mark.parametrize('delay', [0, 2, 30])
def test_delayed_nucleus_beam(task, model_file, beam_size, delay):
    report = evaluate(
        task,
        model_file,
        inference='delayednucleusbeam',
        beam_size=beam_size,
        beam_delay=delay,
    )
    assert report['gen_n_toks'].value() >= 1


def test_bleu_needs_no_data():
    score = BleuMetric.compute('the cat sat on a mat', ['the cat sat on a mat'])
    assert score.value() == pytest.approx(1)


def test_rouge_needs_no_data():
    scores = RougeMetric.compute_many('I like my dog!', ['We like my cat.'], 'f')
    assert None not in scores
    # Two of four words, one of three pairs, and a common subsequence of two words.
    assert [s.value() for s in scores] == pytest.approx([2 / 4, 1 / 3, 2 / 4])


def test_rouge_equals_py_rouge_with_a_sentence_model(monkeypatch):
    """The words are those of ``nltk.word_tokenize`` for a text of one sentence."""
    import nltk.tokenize
    import rouge

    monkeypatch.setattr(nltk.tokenize, 'sent_tokenize', lambda text, language: [text])
    unpatched = rouge.Rouge(metrics=['rouge-n', 'rouge-l'], max_n=2)
    patched = libraries._rouge_evaluator()
    texts = [
        ('i cannot see it', 'i can not see it'),
        ('gonna run lemme go', 'going to run let me go'),
        ('we wanna 10 dogs running', 'she wants ten dogs to run'),
        ('', 'hello'),
    ]
    for guess, answer in texts:
        assert patched.get_scores(guess, answer) == unpatched.get_scores(guess, answer)


def test_txt2vec_array():
    dictionary = DictionaryAgent(Opt({'dict_tokenizer': 'space'}))
    dictionary.add_to_dict(['hello'])
    vector = dictionary.txt2vec('hello hello', np.ndarray)
    assert isinstance(vector, np.ndarray)
    assert vector.tolist() == dictionary.txt2vec('hello hello')


def test_functions_imported_by_name_are_patched():
    from parlai.scripts import eval_model, train_model

    for module in (eval_model, train_model):
        assert module.all_gather_list is distributed.all_gather_list


def test_options_of_another_agent_stay_a_runtime_error(tmp_path):
    (tmp_path / 'preset.opt').write_text('{"num_prompts": 4}')
    preset = ['-o', str(tmp_path / 'preset.opt')]
    with pytest.raises(RuntimeError, match='num_prompts is no option of -m spt_parlai.agents:LoraAgent') as ours:
        TrainModel.setup_args().parse_args([*preset, '-m', 'spt_parlai.agents:LoraAgent'])
    assert isinstance(ours.value, UsageError)
    with pytest.raises(RuntimeError, match='^Trying to set opt from file that does not exist: num_prompts$') as other:
        TrainModel.setup_args().parse_args([*preset, '-m', 'transformer/generator'])
    assert not isinstance(other.value, UsageError)
    assert other.type is RuntimeError


def test_seeding_and_data_of_other_agents_are_parlais(task, tmp_path):
    """NumPy is seeded for our agents alone, and a task's data may be empty or missing for an agent that copes."""
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    train_model.set_seed(7)
    assert np.random.get_state()[1].tolist() == before
    (tmp_path / 'empty.txt').write_text('')
    empty = {**task, 'model': 'repeat_label', 'fromfile_datapath': str(tmp_path / 'empty.txt'), 'datatype': 'valid'}
    opt = EvalModel.setup_args().parse_kwargs(**empty)
    assert create_task(opt, create_agent(opt)).num_examples() == 0
    opt['fromfile_datapath'] = str(tmp_path / 'missing.txt')
    with pytest.raises(FileNotFoundError):
        create_task(opt, create_agent(opt))
