"""Wrong and odd inputs through ParlAI's own scripts: one sentence that names what is wrong, or the right result."""

import builtins
import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.runs import agent_of
from parlai.core.agents import create_agent
from parlai.core.message import Message
from parlai.core.worlds import create_task
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.interactive import Interactive
from parlai.scripts.train_model import TrainModel
from transformers import AutoTokenizer
from typer.testing import CliRunner

from spt_parlai import hub
from spt_parlai.cli import app
from spt_parlai.dialogue.dictionary import TokenizerDictionary
from spt_parlai.errors import UsageError
from spt_parlai.model import loading

AGENT = 'spt_parlai.agents:SptAgent'
EPISODE = (
    'text:your persona: i like tea.\\nhello {i} ?\tlabels:i am fine {i} .\n'
    'text:bye ?\tlabels:bye .\tepisode_done:True\n'
)
SMALL = {
    'model': AGENT,
    'num_prompts': 2,
    'prompt_length': 2,
    'max_new_tokens': 4,
    'batchsize': 2,
    'seed': 1,
    'no_cuda': True,
    'loglevel': 'warn',
}
WINDOW = 160  # of the tiny LLMs


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Options of a task with three short dialogues."""
    folder = tmp_path_factory.mktemp('data')
    (folder / 'chat.txt').write_text(''.join(EPISODE.format(i=i) for i in range(3)))
    return task(folder / 'chat.txt')


def task(path):
    return {
        'task': 'fromfile:parlaiformat',
        'fromfile_datapath': str(path),
        'fromfile_datatype_extension': False,
        'datapath': str(path.parent),
    }


@pytest.fixture
def train(tiny_llms, data, tmp_path):
    """Train for two steps with some options changed."""

    def run(**options):
        return TrainModel.main(
            **{
                **SMALL,
                **data,
                'llm': tiny_llms.opt,
                'model_file': str(tmp_path / 'model'),
                'max_train_steps': 2,
                **options,
            }
        )

    return run


@pytest.fixture(scope='module')
def trained(tiny_llms, data, tmp_path_factory):
    """A model file; read-only."""
    path = tmp_path_factory.mktemp('trained') / 'model'
    TrainModel.main(**SMALL, **data, llm=tiny_llms.opt, model_file=str(path), max_train_steps=2)
    return path


@pytest.fixture
def copied(trained, tmp_path):
    """A model file to damage, with its options."""
    for suffix in ('', '.opt', '.dict'):
        shutil.copy(f'{trained}{suffix}', tmp_path / f'copied{suffix}')
    return tmp_path / 'copied'


@pytest.fixture
def evaluate(data):
    def run(**options):
        return EvalModel.main(**{**data, 'datatype': 'valid', 'loglevel': 'warn', **options})

    return run


@pytest.fixture
def weights_unread(monkeypatch):
    """A mistake in the options must be told before any weight is read."""
    monkeypatch.setattr(loading, 'load_causal_lm', lambda *_, **__: pytest.fail('weights are read'))


def refused(*named, run, **options):
    """The sentence of the one error that a command may end in; it must name all of `named`."""
    with pytest.raises(UsageError) as error:
        run(**options)
    sentence = str(error.value)
    assert '\n' not in sentence and sentence.endswith('.'), sentence
    for part in named:
        assert str(part) in sentence, sentence
    return sentence


# ---- --llm -----------------------------------------------------------------------------------------------


@pytest.fixture
def llm_copy(tiny_llms, tmp_path):
    return shutil.copytree(tiny_llms.opt, tmp_path / 'llm')


def test_missing_llm_folder(train, tmp_path, weights_unread):
    refused(f'--llm {tmp_path / "no"}', 'no such folder', '"demo"', run=train, llm=str(tmp_path / 'no'))


def test_llm_folder_without_config(train, tmp_path, weights_unread):
    (tmp_path / 'llm').mkdir()
    refused(f'--llm {tmp_path / "llm"}', 'no config.json', 'give one', run=train, llm=str(tmp_path / 'llm'))


@pytest.mark.parametrize(
    'content, reason',
    [
        ('{', 'not a valid JSON'),
        ('{}', 'model_type'),
        ('{"model_type": "zzz"}', 'zzz'),
        ('\udcff', 'not a valid JSON'),
    ],
)
def test_llm_folder_with_damaged_config(train, llm_copy, weights_unread, content, reason):
    (llm_copy / 'config.json').write_bytes(content.encode('utf-8', 'surrogateescape'))
    refused(f'--llm {llm_copy}', reason, 'restore it', run=train, llm=str(llm_copy))


def test_llm_folder_without_weights(train, llm_copy):
    (llm_copy / 'model.safetensors').unlink()
    refused(f'--llm {llm_copy}', 'no file named model.safetensors', 'restore it', run=train, llm=str(llm_copy))


@pytest.mark.parametrize('damage', [lambda b: b[: len(b) // 2], lambda b: b'\xff' * 500, lambda b: b''])
def test_llm_folder_with_damaged_weights(train, llm_copy, damage):
    file = llm_copy / 'model.safetensors'
    file.write_bytes(damage(file.read_bytes()))
    refused(f'--llm {llm_copy}', 'could not be loaded', 'restore it', run=train, llm=str(llm_copy))


def test_llm_folder_with_another_models_weights(train, llm_copy, tiny_llms):
    shutil.copy(os.path.join(tiny_llms.llama, 'model.safetensors'), llm_copy / 'model.safetensors')
    refused(
        f'--llm {llm_copy}', 'do not belong to its config.json', 'from the same model', run=train, llm=str(llm_copy)
    )


@pytest.mark.parametrize('key, value', [('num_hidden_layers', 3), ('ffn_dim', 64)])
def test_llm_folder_whose_weights_would_stay_random(train, llm_copy, key, value):
    config = json.loads((llm_copy / 'config.json').read_text())
    (llm_copy / 'config.json').write_text(json.dumps({**config, key: value}))
    refused(f'--llm {llm_copy}', 'missing or of another shape', 'from the same model', run=train, llm=str(llm_copy))


def test_llm_folder_without_tokenizer(train, llm_copy, weights_unread):
    for file in llm_copy.glob('tokenizer*'):
        file.unlink()
    refused(f'--llm {llm_copy}', 'no tokenizer', 'tokenizer.json', run=train, llm=str(llm_copy))


def test_llm_folder_with_damaged_tokenizer(train, llm_copy, weights_unread):
    (llm_copy / 'tokenizer.json').write_text('{"version": "1.0"}')
    refused(f'--llm {llm_copy}', 'could not be loaded', run=train, llm=str(llm_copy))


def test_tokenizer_larger_than_the_llm(train, llm_copy, weights_unread):
    tokenizer = AutoTokenizer.from_pretrained(llm_copy)
    tokenizer.add_tokens(['zzzz'])
    tokenizer.save_pretrained(llm_copy)
    refused(f'--llm {llm_copy}', f'{len(tokenizer)} tokens', 'from the same model', run=train, llm=str(llm_copy))


def test_tokenizer_without_end_of_sequence(train, llm_copy, weights_unread):
    config = json.loads((llm_copy / 'tokenizer_config.json').read_text())
    del config['eos_token']
    (llm_copy / 'tokenizer_config.json').write_text(json.dumps(config))
    refused(f'--llm {llm_copy}', 'no end-of-sequence token', 'set eos_token', run=train, llm=str(llm_copy))


def test_encoder_decoder(train, tiny_llms, weights_unread):
    refused(f'--llm {tiny_llms.bart}', 'encoder-decoder (bart)', 'opt-125m', run=train, llm=tiny_llms.bart)


@pytest.mark.parametrize('llm', ['', '  '])
def test_empty_llm(train, weights_unread, llm):
    refused('--llm is empty', '"demo"', run=train, llm=llm)


@pytest.fixture
def no_network(monkeypatch):
    """Every name look-up fails, and every wait does."""
    from huggingface_hub import close_session, constants

    def lookup(*_, **__):
        raise socket.gaierror('no network')

    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(socket, 'getaddrinfo', lookup)
    monkeypatch.setattr(time, 'sleep', lambda seconds: pytest.fail(f'waits {seconds} s'))
    close_session()
    hub.hub_answers.cache_clear()
    yield
    close_session()
    hub.hub_answers.cache_clear()


@pytest.fixture
def offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv('HF_HUB_OFFLINE', '1')  # read when the library is imported, which has happened here
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    hub.hub_answers.cache_clear()
    yield
    hub.hub_answers.cache_clear()


@pytest.mark.parametrize('state', ['no_network', 'offline'])
@pytest.mark.parametrize('revision', [None, 'v9'])
def test_id_that_is_not_cached(train, request, state, revision):
    request.getfixturevalue(state)
    named = ['--llm nobody/no-such-llm', 'huggingface.co', '--llm FOLDER', '--llm demo']
    refused(*named, *(['revision v9'] if revision else []), run=train, llm='nobody/no-such-llm', llm_revision=revision)


def test_cached_id_needs_no_network(tiny_llms, no_network, monkeypatch, tmp_path):
    """Laid out as the hub's cache is; with the network gone, nothing is retried."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    commit = 'a' * 40
    repository = tmp_path / 'models--somebody--tiny'
    shutil.copytree(tiny_llms.opt, repository / 'snapshots' / commit)
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text(commit)
    assert len(hub.load_tokenizer('somebody/tiny')) == len(hub.load_tokenizer(tiny_llms.opt))
    assert hub.load_causal_lm('somebody/tiny').config.hidden_size == 16


@pytest.mark.parametrize('llm', ['a b', 'a--b', '-', 'x' * 300, 'nul\0byte'])
def test_impossible_id(train, no_network, llm):
    refused(f'--llm {llm}', '--llm demo', run=train, llm=llm)


def test_gated_llm_is_told_how_to_get_in(monkeypatch):
    def gated(*_, **__):
        raise OSError('You are trying to access a gated repo.')

    monkeypatch.setattr(hub, 'hub_answers', lambda: True)
    with pytest.raises(
        UsageError,
        match='--llm meta/llama is gated: accept its licence at https://huggingface.co/meta/llama.*hf auth login',
    ):
        hub._load(gated, 'meta/llama', None)


# ---- options, through a command --------------------------------------------------------------------------


@pytest.mark.parametrize(
    'option, value',
    [
        ('num_prompts', 0),
        ('num_prompts', -1),
        ('prompt_length', 0),
        ('lambda_fusion', -1.0),
        ('lambda_selection', float('nan')),
        ('tau_gold', 0.0),
        ('similarity_threshold', 101.0),
        ('max_new_tokens', 0),
        ('text_truncate', 0),
        ('text_truncate', 100_000),
        ('text_truncate', 3),
        ('label_truncate', 1),
        ('prompt_length', 150),
        ('person_tokens', True),
        ('special_tok_lst', 'A,B'),
        ('learningrate', -1.0),
        ('batchsize', 0),
    ],
)
def test_impossible_option(train, weights_unread, tmp_path, option, value):
    refused('--' + option.replace('_', '-'), value, run=train, **{option: value})
    assert not os.path.exists(tmp_path / 'model')


@pytest.mark.parametrize('option, value', [('model_parallel', True), ('data_parallel', True), ('ddp_backend', 'zero2')])
def test_impossible_option_of_other_agents(train, agent_options, weights_unread, option, value):
    refused(
        '--' + option.replace('_', '-'),
        value,
        run=lambda **kw: create_agent(agent_options('opt', **kw)),
        **{option: value},
    )


def test_unknown_choice_by_command_line_and_by_api(agent_options, capsys):
    with pytest.raises(SystemExit) as error:
        TrainModel.setup_args().parse_args(['-m', AGENT, '--contrastive-text', 'zeros'])
    assert error.value.code == 2
    assert "--contrastive-text: invalid choice: 'zeros' (choose from" in ''.join(capsys.readouterr())
    with pytest.raises(ValueError, match="--contrastive-text: invalid choice: 'zeros'"):
        TrainModel.setup_args().parse_kwargs(model=AGENT, contrastive_text='zeros')
    opt = agent_options('opt')
    opt['prompt_init'] = 'zeros'
    refused("--prompt-init 'zeros'", 'vocab', run=lambda: create_agent(opt))


@pytest.mark.parametrize(
    'content, reason', [(None, 'no such file'), ('cpu', 'not valid JSON'), ('[]', 'object of module names')]
)
def test_wrong_device_map(train, weights_unread, tmp_path, content, reason):
    path = tmp_path / 'map.json'
    if content is not None:
        path.write_text(content)
    refused(f'--llm-device-map {path}', reason, run=train, llm_device_map=str(path))


def test_quantization_without_bitsandbytes(train, weights_unread, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, *a: None if name == 'bitsandbytes' else find(name, *a)
    )
    refused('--llm-quantization 4bit', 'pip install', run=train, llm_quantization='4bit')


def test_4_bits_on_a_cpu(train, weights_unread):
    pytest.importorskip('bitsandbytes', reason="pip install 'spt_parlai[quantization]'")
    refused('--llm-quantization 4bit', 'needs a GPU', 'use 8bit', run=train, llm_quantization='4bit')


@pytest.mark.parametrize('option', ['checkpoint_activations', 'llm_compile'])
def test_layers_that_can_be_neither_recomputed_nor_compiled(train, tiny_llms, monkeypatch, option):
    monkeypatch.setattr('transformers.modeling_layers.GradientCheckpointingLayer', str)
    flag = '--' + option.replace('_', '-')
    refused(
        f'--llm {tiny_llms.opt} with {flag} true: OPTForCausalLM has no', 'train without', run=train, **{option: True}
    )


@pytest.mark.parametrize(
    'texts, why',
    [
        ('text:a|a', 'begin with the same 8 tokens'),
        ('text:a', '1 text for 2 prompts'),
    ],
)
def test_prompt_texts_that_do_not_fit(train, texts, why):
    given = f'--prompt-init {texts} with --num-prompts 2 and --prompt-length 8: '
    refused(given, why, 'give ', run=train, prompt_init=texts, num_prompts=2, prompt_length=8)


def test_more_prompt_tokens_than_words(train):
    refused('--prompt-init vocab', '--num-prompts 400', '340', 'fewer', run=train, prompt_init='vocab', num_prompts=400)


def test_missing_init_model(train, weights_unread, tmp_path):
    refused(f"--init-model '{tmp_path / 'no'}'", 'no such file', run=train, init_model=str(tmp_path / 'no'))


# ---- data ------------------------------------------------------------------------------------------------


def test_missing_data_file(train, evaluate, trained, tmp_path):
    named = ('-t fromfile:parlaiformat', tmp_path / 'no.txt', 'no such file', 'check the path')
    refused(*named, run=train, **task(tmp_path / 'no.txt'))
    refused(*named, run=evaluate, model_file=str(trained), **task(tmp_path / 'no.txt'))


@pytest.mark.parametrize(
    'content, named',
    [
        (b'', ['holds no example', 'check']),
        (b'\n\n', ['holds no example', 'check']),
        (b'text:\xff\xfe', ['not UTF-8', 'chat.txt']),
        (b'hello there\n', ['"text" field', 'Line 1', 'chat.txt', 'labels:']),
        (b'text:hi\n', ['"labels" field', 'Line 1']),
        (b'labels:hi\tepisode_done:True\n', ['"text" field', 'Line 1']),
    ],
)
def test_data_file_without_data(train, tmp_path, content, named):
    (tmp_path / 'chat.txt').write_bytes(content)
    refused('-t fromfile:parlaiformat', *named, run=train, **task(tmp_path / 'chat.txt'))


def test_another_error_of_a_teacher_keeps_its_traceback(monkeypatch, data):
    """Only what a user can mend becomes a sentence: a task's author needs the rest."""
    from parlai.core import worlds

    monkeypatch.setattr(worlds, 'load_task_module', lambda name: (_ for _ in ()).throw(ValueError('a bug')))
    with pytest.raises(ValueError, match='a bug') as error:
        create_task(TrainModel.setup_args().parse_kwargs(**data), [])
    assert not isinstance(error.value, UsageError)


def test_convai2_without_data_and_network(tiny_llms, no_network, tmp_path):
    refused(
        'ConvAI2',
        'could not be downloaded',
        tmp_path / 'data',
        'spt data convai2 --from FOLDER',
        '-dp DATAPATH',
        run=TrainModel.main,
        **SMALL,
        llm=tiny_llms.opt,
        model_file=str(tmp_path / 'model'),
        task='convai2:self',
        datapath=str(tmp_path / 'data'),
    )


# ---- model files -----------------------------------------------------------------------------------------


def test_missing_model_file(evaluate, weights_unread, tmp_path):
    with pytest.raises(UsageError, match=f'^-mf {tmp_path / "no"}: there is no such model file.$'):
        evaluate(model_file=str(tmp_path / 'no'), model=AGENT)


DAMAGES = {
    'cut off': lambda path: path.write_bytes(path.read_bytes()[:1000]),
    'random': lambda path: path.write_bytes(bytes(range(256)) * 9),
    'empty': lambda path: path.write_bytes(b''),
    'text': lambda path: path.write_text('hello'),
    'stock': lambda path: torch.save({'model': {'w': torch.ones(1)}, 'optimizer': {}}, path),
    'hollow': lambda path: torch.save({'model': {}, 'spt': {'format': 1}}, path),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_model_file(train, evaluate, copied, damage):
    DAMAGES[damage](copied)
    before = copied.read_bytes()
    refused(copied, run=evaluate, model_file=str(copied))
    refused(copied, run=train, model_file=str(copied))
    assert copied.read_bytes() == before


def test_model_file_that_lacks_a_tensor(evaluate, copied):
    states = torch.load(copied)
    del states['model']['soft_prompts.tokens']
    torch.save(states, copied)
    refused(copied, run=evaluate, model_file=str(copied))


def test_model_file_without_its_options(evaluate, copied, tiny_llms):
    """The checkpoint alone is enough where K, L and the LLM are given."""
    for suffix in ('.opt', '.dict'):
        os.remove(f'{copied}{suffix}')
    report = evaluate(
        model_file=str(copied), llm=tiny_llms.opt, **{k: SMALL[k] for k in ('model', 'num_prompts', 'prompt_length')}
    )
    assert report['exs'] == 6


def test_model_file_of_another_llm(evaluate, trained, tiny_llms, weights_unread):
    refused(
        trained,
        f'--llm {tiny_llms.opt}',
        f'--llm {tiny_llms.llama}',
        'vocab_size',
        f'use --llm {tiny_llms.opt}',
        run=evaluate,
        model_file=str(trained),
        llm=tiny_llms.llama,
    )


@pytest.mark.parametrize('option, other', [('num_prompts', 3), ('prompt_length', 3), ('prompt_length', 1)])
def test_model_file_with_other_prompts(evaluate, trained, option, other, weights_unread):
    flag = '--' + option.replace('_', '-')
    refused(
        trained,
        f'holds {flag} 2, not {other}',
        f'leave {flag} out',
        run=evaluate,
        model_file=str(trained),
        **{option: other},
    )


def test_model_file_with_longer_replies_than_it_was_trained_with(evaluate, trained):
    """Nobody gave --text-truncate, so nobody can be asked to change it."""
    assert evaluate(model_file=str(trained), max_new_tokens=60)['exs'] == 6


@pytest.mark.parametrize('content', [b'', b'hello', b'\x80\x04.', None])
def test_info_on_a_wrong_file(tmp_path, content):
    path = tmp_path / 'model'
    if content is not None:
        path.write_bytes(content)
    result = CliRunner().invoke(app, ['info', str(path)])
    assert type(result.exception) is UsageError and str(path) in str(result.exception)


def test_info_cuts_no_name(tiny_llms, tmp_path, monkeypatch):
    monkeypatch.setenv('COLUMNS', '20')
    agent = agent_of(tiny_llms.opt, 'LoraAgent', model_file=tmp_path / 'm', no_cuda=True)
    agent.save()
    shown = CliRunner().invoke(app, ['info', str(tmp_path / 'm')]).output.splitlines()
    for name, tensor in agent.model.state_dict().items():
        assert any(line.split(' ', 1)[0] == name and line.endswith(f'{list(tensor.shape)} float32') for line in shown)


def test_info_as_a_command_prints_the_sentence_alone(tmp_path):
    ended = subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), 'spt'), 'info', str(tmp_path / 'no')],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1 and ended.stdout == ''
    assert ended.stderr == f'{tmp_path / "no"}: no such file; give the model file of an SptAgent.\n'


# ---- chat ------------------------------------------------------------------------------------------------


@pytest.fixture
def chat(trained, monkeypatch, capsys):
    """Talk; the input ends after `lines`. Returns what was printed."""

    def run(*lines, **options):
        waiting = iter(lines)

        def typed(*_):
            try:
                return next(waiting)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(builtins, 'input', typed)
        monkeypatch.setattr('sys.stdin', io.StringIO())
        Interactive.main(model_file=str(trained), loglevel='warn', **options)
        return capsys.readouterr().out

    return run


def test_chat_that_ends_at_once(chat):
    assert '[ Spt has the persona ]' in chat(persona='i ski.') and 'i ski.' in chat(persona='i ski.')


def test_chat_with_odd_lines(chat):
    printed = chat('', '   ', '😀', '</s>', '[DONE]', '\udcff', persona='i ski.')
    assert printed.count('[Spt]:') == 5  # every line is answered; [DONE] and the end of the input are none


@pytest.mark.parametrize(
    'content, reason', [(None, 'No such file'), (b'', 'is empty'), (b'\x89PNG\xff\x00', 'not UTF-8 text')]
)
def test_chat_with_a_wrong_persona_file(chat, weights_unread, tmp_path, content, reason):
    path = tmp_path / 'persona.txt'
    if content is not None:
        path.write_bytes(content)
    refused(f'--persona-file {path}', reason, 'one sentence of the persona per line', run=chat, persona_file=str(path))


def test_chat_with_two_personas(chat, weights_unread):
    refused('--persona', '--persona-file', 'give one', run=chat, persona='i ski.', persona_file='persona.txt')


# ---- odd dialogues ---------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def agent_options(tiny_llms):
    def build(llm, **changes):
        opt = TrainModel.setup_args().parse_kwargs(**SMALL, llm=getattr(tiny_llms, llm), task='spt_parlai.tasks.sample')
        return type(opt)({**opt, **changes})

    return build


@pytest.fixture(scope='module')
def agents(agent_options):
    return {llm: create_agent(agent_options(llm)) for llm in ('opt', 'llama')}


@pytest.fixture(params=['opt', 'llama'])
def agent(agents, request):
    agent = agents[request.param]
    agent.reset()
    return agent


def hear(agent, text, labels=None):
    """Observe and act; returns (the observation, the context as text, the reply)."""
    message = {
        'id': 'partner',
        'text': text,
        'episode_done': False,
        **({} if labels is None else {'eval_labels': labels}),
    }
    observation = agent.observe(Message({k: v for k, v in message.items() if v is not None}))
    ids = observation['text_vec'].tolist()
    special = set(agent.dict.tokenizer.all_special_ids)
    assert ids[0] == agent.dict.bos and not special & set(ids[1:])
    assert len(ids) <= agent.text_truncate
    reply = agent.act()
    assert isinstance(reply['text'], str) and len(agent.dict.txt2vec(reply['text'])) < 100
    return observation, agent.dict.tokenizer.decode(ids[1:]), reply


def metrics(reply):
    return {name: float(metric.value()) for name, metric in reply['metrics'].items()}


@pytest.mark.parametrize(
    'text, context',
    [
        ('', 'context: R:'),
        (' \t\n ', 'context: R:'),
        ('__SILENCE__', 'context: R:'),
        (None, 'context: R:'),
        ('your persona: i ski.', 'given persona: i ski.; context: R:'),
        ("your persona: i ski.\npartner's persona: i swim.\nhi", 'given persona: i ski.; context: Q: hi R:'),
        ('😀👍🏽', 'context: Q: 😀👍🏽 R:'),
        ('Привет, мир', 'context: Q: Привет, мир R:'),
        ('你好 世界', 'context: Q: 你好 世界 R:'),
        ('مرحبا', 'context: Q: مرحبا R:'),
        ('a\u200bb\u200d\x07\x1b', 'context: Q: a\u200bb\u200d\x07\x1b R:'),
        ('</s><pad> Q: <s> R:', 'context: Q: </s><pad> Q: <s> R: R:'),
        ('hi \ud83d .', 'context: Q: hi � . R:'),
    ],
)
def test_odd_text(agent, text, context):
    observation, heard, reply = hear(agent, text)
    assert heard == context
    assert metrics(reply)['ctrunc'] == 0 and metrics(reply)['clen'] == len(observation['text_vec'])


def test_dialogue_longer_than_the_window(agent):
    hear(agent, 'your persona: i like tea.\nzebra')
    for i in range(30):
        observation, heard, reply = hear(agent, f'number {i} : how are you ?')
        assert heard.startswith('given persona: i like tea.; context:') and heard.endswith(
            f'Q: number {i} : how are you ? R:'
        )
    assert metrics(reply)['ctrunc'] == 1 and 'zebra' not in heard
    assert metrics(reply)['clen'] == len(observation['text_vec']) + metrics(reply)['ctrunclen'] > WINDOW


@pytest.mark.parametrize('text', ['how are you ? ' * 100 + 'bye', 'w' * 3000 + ' bye'])
def test_utterance_longer_than_the_window(agent, text):
    observation, heard, reply = hear(agent, 'your persona: i like tea.\n' + text)
    assert heard.startswith('given persona: i like tea.; context: Q:') and heard.endswith(' bye R:')
    assert metrics(reply)['ctrunc'] == 1 and len(observation['text_vec']) == agent.text_truncate


def test_persona_longer_than_the_window(agent):
    _, heard, reply = hear(agent, 'your persona: i like tea.\n' * 100 + 'hello')
    assert heard.startswith('given persona: i like tea. i like tea.') and heard.endswith('context: Q: hello R:')
    assert metrics(reply)['ctrunc'] == 1


def test_empty_label_is_its_end_alone(agent):
    observation, _, reply = hear(agent, 'hi', labels=[''])
    assert observation['eval_labels_vec'].tolist() == [agent.END_IDX]
    assert metrics(reply)['llen'] == 1 and 0 < metrics(reply)['loss'] < 100


def test_one_of_several_labels_is_the_target(agent):
    labels = ['hello', 'how are you ?']
    observation, _, reply = hear(agent, 'hi', labels=labels)
    assert observation['eval_labels_vec'].tolist() in [[*agent.dict.txt2vec(label), agent.END_IDX] for label in labels]
    assert 0 < metrics(reply)['loss'] < 100


def test_label_longer_than_the_window_keeps_its_end_token(agent):
    observation, _, reply = hear(agent, 'hi', labels=['how are you ? ' * 100])
    vector = observation['eval_labels_vec'].tolist()
    assert len(vector) == agent.label_truncate and vector[-1] == agent.END_IDX
    assert metrics(reply)['ltrunc'] == 1 and metrics(reply)['ltrunclen'] > 100


def test_empty_labels_in_training(train, tmp_path):
    (tmp_path / 'chat.txt').write_text('text:hi\tlabels:\tepisode_done:True\ntext:\tlabels:hello\tepisode_done:True\n')
    _, report = train(**task(tmp_path / 'chat.txt'))
    assert report['exs'] == 2 and 0 < float(report['loss']) < 100


def test_several_agents_of_a_process_keep_their_dialogues_apart(agent):
    hear(agent, 'hello')
    other = agent.clone()
    _, heard, _ = hear(other, 'bye')
    assert heard == 'context: Q: bye R:'
    assert agent.history.get_history_str().startswith('context: Q: hello R:')


def test_the_dictionary_of_a_model_is_the_llms(agent):
    assert type(agent.dict) is TokenizerDictionary
    assert len(agent.dict) == len(agent.dict.tokenizer) == agent.model.llm.lm.config.vocab_size


@pytest.mark.skipif(importlib.util.find_spec('sentencepiece') is not None, reason='sentencepiece is installed')
def test_a_sentencepiece_tokenizer_without_sentencepiece(llm_copy, train):
    (Path(llm_copy) / 'tokenizer.json').rename(Path(llm_copy) / 'tokenizer.model')
    refused('--llm', "pip install 'spt_parlai[sentencepiece]'", run=train, llm=str(llm_copy))


def test_a_beam_with_greedy_search(trained, evaluate, weights_unread):
    refused('--beam-size 3', '--inference beam', run=evaluate, model_file=str(trained), beam_size=3)


def test_evaluating_an_empty_file(trained, evaluate, tmp_path):
    (tmp_path / 'empty.txt').write_text('')
    refused(
        '-t fromfile:parlaiformat',
        'holds no example',
        run=evaluate,
        model_file=str(trained),
        **task(tmp_path / 'empty.txt'),
    )


def test_a_model_file_below_a_file(train, tmp_path, weights_unread):
    (tmp_path / 'runs').write_text('')
    refused('--model-file', 'is a file', 'another path', run=train, model_file=str(tmp_path / 'runs' / 'model'))


def test_a_folder_as_model_file(train, tmp_path, weights_unread):
    refused(tmp_path, 'is a folder', run=train, model_file=str(tmp_path))
