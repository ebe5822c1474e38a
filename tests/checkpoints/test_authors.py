"""A checkpoint of the paper's authors becomes a model file that ParlAI's commands accept like any other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from helpers.authors_tensors import PROMPT, D, K, L, make_tensors
from helpers.runs import SAMPLE, evaluate, train
from parlai.core.agents import create_agent_from_model_file
from safetensors.torch import save_file
from typer.testing import CliRunner

from spt_parlai.agents.import_authors import import_authors
from spt_parlai.checkpoints.authors import read_authors
from spt_parlai.checkpoints.files import load_states
from spt_parlai.cli import app
from spt_parlai.errors import UsageError

SHARED = os.environ.get('SPT_SHARED_DATA')


def same(found, tensors):
    expected = torch.stack([tensors[PROMPT.format(i)] for i in range(len(found.prompts))]).float()
    assert torch.equal(found.prompts, expected)
    assert torch.equal(found.weight, tensors['prompt_normalizer.weight'].float())
    assert torch.equal(found.bias, tensors['prompt_normalizer.bias'].float())
    assert all(tensor.dtype == torch.float32 for tensor in found)


def refusal(source):
    with pytest.raises(UsageError) as error:
        read_authors(source)
    message = str(error.value)
    assert '\n' not in message and message.endswith('.') and str(source) in message
    return message


# ---- reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('below', ['', 'ds_ckpt', 'ds_ckpt/best', 'ds_ckpt/best/mp_rank_00_model_states.pt'])
def test_deepspeed_folder(tmp_path, save_deepspeed, below, dtype):
    tensors = make_tensors(dtype)
    save_deepspeed(tmp_path / 'run' / 'ds_ckpt', tensors)
    same(read_authors(tmp_path / 'run' / below), tensors)


def test_latest_decides_between_folders(tmp_path, save_deepspeed, tensors):
    save_deepspeed(tmp_path, make_tensors())
    os.rename(tmp_path / 'best', tmp_path / 'global_step5')
    save_deepspeed(tmp_path, {name: tensor + 1 for name, tensor in tensors.items()})
    (tmp_path / 'latest').write_text('global_step5\n')
    same(read_authors(tmp_path), tensors)
    (tmp_path / 'latest').unlink()
    assert 'several checkpoints' in refusal(tmp_path)


@pytest.mark.parametrize('prefix', ['', 'module.', 'model.', '_forward_module.model.'])
@pytest.mark.parametrize('name', ['x.pt', 'x.bin', 'x.safetensors'])
def test_single_files_and_prefixes(tmp_path, tensors, name, prefix):
    prefixed = {prefix + key: value for key, value in tensors.items()}
    save_file(prefixed, tmp_path / name) if name.endswith('s') else torch.save(
        {'state_dict': prefixed}, tmp_path / name
    )
    same(read_authors(tmp_path / name), tensors)


def test_more_than_ten_prompts_keep_their_order(tmp_path):
    tensors = make_tensors(K=12)
    torch.save(dict(reversed(tensors.items())), tmp_path / 'x.pt')
    same(read_authors(tmp_path / 'x.pt'), tensors)


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda t: t.pop(PROMPT.format(1)), 'holds models.2 but not models.1'),
        (lambda t: t.pop(PROMPT.format(0)), 'holds models.2 but not models.0'),
        (lambda t: [t.pop(PROMPT.format(i)) for i in range(3)], 'holds no soft prompts'),
        (
            lambda t: t.update({PROMPT.format(1): torch.ones(5, D)}),
            'models.1 has a prompt of shape [5, 16] and models.0 one of [2, 16]',
        ),
        (lambda t: t.update({PROMPT.format(2): torch.ones(D)}), 'models.2 has a prompt of shape [16]'),
        (lambda t: t.update({PROMPT.format(10**8): torch.ones(L, D)}), 'but not models.3'),
        (
            lambda t: t.update({'prompt_normalizer.weight': torch.ones(4, D)}),
            'prompt_normalizer.weight is of shape [4, 16], not [16, 16]',
        ),
        (
            lambda t: t.update({'prompt_normalizer.bias': torch.ones(4)}),
            'prompt_normalizer.bias is of shape [4], not [16]',
        ),
        (lambda t: t.update({PROMPT.format(1): torch.full((L, D), float('nan'))}), 'not finite numbers'),
        (lambda t: t.update({'ema.' + PROMPT.format(1): torch.ones(L, D)}), f'holds both {PROMPT.format(1)} and ema.'),
        (lambda t: t.update({name: torch.ones(0) for name in t}), 'zero_to_fp32.py'),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, tensors, change, words):
    change(tensors)
    torch.save(tensors, tmp_path / 'x.pt')
    assert words in refusal(tmp_path / 'x.pt')


def test_folders_without_a_checkpoint_are_refused(tmp_path, save_deepspeed, tensors):
    assert 'no such file or folder' in refusal(tmp_path / 'nothing')
    assert 'no such file or folder' in refusal(tmp_path / ('x' * 5000))
    assert 'holds no mp_rank_00_model_states.pt' in refusal(tmp_path)
    (tmp_path / 'zero_pp_rank_0_mp_rank_00_model_states.pt').touch()
    assert 'zero_to_fp32.py' in refusal(tmp_path)
    save_deepspeed(tmp_path / 'other', tensors)
    for name in ('gone', '\0', 'x' * 5000):
        (tmp_path / 'other' / 'latest').write_text(name)
        assert 'which is not there' in refusal(tmp_path / 'other')


# ---- import ----------------------------------------------------------------------------------------------


@pytest.fixture(params=['opt', 'llama'])
def llm(request, tiny_llms):
    return getattr(tiny_llms, request.param)


@pytest.fixture
def source(tmp_path, save_deepspeed, tensors):
    return save_deepspeed(tmp_path / 'theirs', tensors)


def test_imported_model_evaluates_talks_and_trains(tmp_path, source, tensors, llm):
    model_file = tmp_path / 'ours' / 'model'
    done = CliRunner().invoke(app, ['import-authors', str(source), '--llm', llm, '--out', str(model_file)])
    assert done.exit_code == 0 and f'{K} soft prompts of {L} tokens (hidden size {D})' in done.output
    assert sorted(os.listdir(model_file.parent)) == ['model', 'model.dict', 'model.opt']
    states = load_states(model_file)
    assert (states['spt']['num_prompts'], states['spt']['prompt_length'], states['spt']['llm']) == (K, L, llm)
    for layer in ('lin_context', 'lin_prompt'):
        for part in ('weight', 'bias'):
            assert torch.equal(states['model'][f'retriever.{layer}.{part}'], tensors[f'prompt_normalizer.{part}'])
    assert len(states['model']) == 5
    report = evaluate(model_file, num_examples=8)
    assert sum(report[f'prompt_usage_{i}'] for i in range(K)) == pytest.approx(1) and report['exs'] == 8
    agent = create_agent_from_model_file(str(model_file), {'interactive_mode': True, 'task': 'interactive'})
    agent.observe({'id': 'you', 'text': 'hello !', 'episode_done': False})
    assert isinstance(agent.act()['text'], str)
    assert torch.equal(agent.bare_model.soft_prompts.tokens, torch.stack([tensors[PROMPT.format(i)] for i in range(K)]))
    options = json.loads(Path(f'{model_file}.opt').read_text())
    assert options['datatype'] == 'train' and 'override' not in options
    train(model_file, llm, max_train_steps=2)
    trained = load_states(model_file)['model']
    moved = (trained['soft_prompts.tokens'] - states['model']['soft_prompts.tokens']).abs().max()
    assert 0 < moved < 0.1  # two steps of 0.01 from where the import began


def test_a_model_is_replaced_only_by_force(tmp_path, source, tensors, tiny_llms):
    model_file = tmp_path / 'model'
    train(model_file, tiny_llms.opt, max_train_steps=2, num_prompts=4, save_every_n_secs=0.001)
    assert os.path.exists(f'{model_file}.checkpoint')
    before = {path.name: path.read_bytes() for path in tmp_path.glob('model*')}
    with pytest.raises(UsageError, match=f'--out {model_file}: .*model exists; give another path, or --force'):
        import_authors(source, tiny_llms.opt, model_file)
    assert {path.name: path.read_bytes() for path in tmp_path.glob('model*')} == before
    import_authors(source, tiny_llms.opt, model_file, force=True)
    assert {path.name for path in tmp_path.glob('model*')} == {'model', 'model.dict', 'model.opt'}
    assert torch.equal(load_states(model_file)['model']['soft_prompts.tokens'][0], tensors[PROMPT.format(0)])
    assert evaluate(model_file, num_examples=4)['exs'] == 4  # K is 3 now, in the options too


def test_refuses_before_the_llm_loads(tmp_path, save_deepspeed, source, tensors, tiny_llms, monkeypatch):
    def unwanted(*_args, **_kwargs):
        raise AssertionError('the LLM was loaded')

    monkeypatch.setattr('transformers.AutoModelForCausalLM.from_pretrained', unwanted)
    narrow = save_deepspeed(tmp_path / 'narrow', make_tensors(D=8))
    without = save_deepspeed(tmp_path / 'without', {k: v for k, v in tensors.items() if 'normalizer.bias' not in k})
    (tmp_path / 'file').touch()
    for theirs, llm, out, words in (
        (narrow, tiny_llms.opt, 'out', f'{narrow} holds prompts 8 wide, but --llm {tiny_llms.opt} is 16 wide'),
        (without, tiny_llms.opt, 'out', 'holds no prompt_normalizer.bias'),
        (source, tiny_llms.bart, 'out', 'is an encoder-decoder'),
        (source, str(tmp_path), 'out', 'holds no config.json'),
        (source, tiny_llms.opt, '.', 'is a folder; give the path of a model file'),
        (source, tiny_llms.opt, 'file/model', 'is a file, so nothing can be written below it'),
        (source, tiny_llms.opt, 'file', 'exists; give another path, or --force'),
    ):
        with pytest.raises(UsageError) as error:
            import_authors(theirs, llm, tmp_path / out)
        assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.skipif(not SHARED, reason='SPT_SHARED_DATA, the folder with the golden numbers, is not set')
def test_import_computes_what_the_authors_code_computed(tmp_path):
    """The imported model file gives the numbers that the authors' code computed on a real Llama with these tensors."""
    golden = json.loads((Path(SHARED) / 'golden' / 'golden_stories260K.json').read_text(encoding='utf-8'))
    tensors = {PROMPT.format(i): torch.tensor(prompt) for i, prompt in enumerate(golden['prompts'])}
    tensors['prompt_normalizer.weight'] = torch.tensor(golden['linear_weight'])
    tensors['prompt_normalizer.bias'] = torch.tensor(golden['linear_bias'])
    torch.save({'module': tensors}, tmp_path / 'theirs.pt')
    import_authors(tmp_path / 'theirs.pt', str(Path(SHARED) / 'models' / golden['llm']), tmp_path / 'model')
    model = create_agent_from_model_file(str(tmp_path / 'model')).bare_model
    pad = torch.nn.utils.rnn.pad_sequence
    contexts, targets = (
        pad([torch.tensor(e[key]) for e in golden['examples']], batch_first=True, padding_value=-1)
        for key in ('context_ids', 'target_ids')
    )
    with torch.no_grad():
        prediction = model(contexts, targets)
    torch.testing.assert_close(
        prediction.scores, torch.tensor([e['scores'] for e in golden['examples']]), rtol=1e-5, atol=1e-5
    )
    nll = torch.stack([-prediction.log_probs[:, prediction.example == n].mean(1) for n in range(len(contexts))], 1)
    torch.testing.assert_close(nll, torch.tensor(golden['nll']), rtol=1e-5, atol=1e-5)
    assert evaluate(tmp_path / 'model', num_examples=4, task=SAMPLE)['exs'] == 4
