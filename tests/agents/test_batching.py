"""The window's division between context and target; and batches, which change no result that they should not change."""

import collections
from types import SimpleNamespace

import pytest
import torch
from helpers.runs import SAMPLE, agent_of, evaluate, logged, train
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_parlai.agents import SptAgent
from spt_parlai.agents.batching import SMALLEST_CONTEXT, UNBOUNDED, share_window, window_size
from spt_parlai.errors import UsageError

PER_EXAMPLE = (
    'ppl',
    'loss',
    'token_acc',
    'nll',
    'selection',
    'fusion',
    'prompt_usage_0',
    'prompt_usage_entropy',
    'selected_gain',
    'best_gain',
    'prompt_information',
    'f1',
    'exs',
)
MESSAGES = [
    {
        'text': f'your persona: i like {thing}.\nhello , what do you like ?',
        'labels': [f'i like {thing} very much .' + ' yes' * n],
        'episode_done': True,
    }
    for n, thing in enumerate(('tea', 'my dog', 'rain', 'old songs'))
]


def feed(agent, *batches):
    """Train on batches of messages; a clone of the agent observes each row, as in ParlAI's batch world."""
    for messages in batches:
        clones = [agent.clone() for _ in messages]
        agent.batch_act([clone.observe(dict(message)) for clone, message in zip(clones, messages, strict=True)])


def tensors(agent):
    return {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}


def test_update_freq_equals_a_batch_as_many_times_as_large(tiny_llms, tmp_path):
    """Every loss but the contrast, which is over the pairs of a batch, is a mean over examples."""
    after = []
    for n, batches in enumerate(([MESSAGES], [MESSAGES[:2], MESSAGES[2:]], [[m] for m in MESSAGES])):
        agent = agent_of(
            tiny_llms.opt,
            model_file=tmp_path / str(n),
            optimizer='sgd',
            learningrate=1.0,
            lambda_contrastive=0,
            update_freq=len(batches),
        )
        feed(agent, *batches)
        assert agent._number_training_updates == 1
        after.append(tensors(agent))
    for other in after[1:]:
        for name, tensor in after[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)


def test_gradient_clip_bounds_the_step(tiny_llms, tmp_path):
    def step(clip):
        agent = agent_of(
            tiny_llms.opt, model_file=tmp_path / f'm{clip}', optimizer='sgd', learningrate=1.0, gradient_clip=clip
        )
        before = tensors(agent)
        feed(agent, MESSAGES)
        after = tensors(agent)
        return torch.sqrt(sum((after[n] - before[n]).pow(2).sum() for n in before)).item(), agent.report()[
            'gnorm'
        ].value()

    free, norm = step(-1)
    assert free == pytest.approx(norm, rel=1e-4)
    assert step(norm / 3)[0] == pytest.approx(norm / 3, rel=1e-3)
    assert step(norm * 3)[0] == pytest.approx(norm, rel=1e-4)


def test_the_retriever_has_a_learning_rate_of_its_own(tiny_llms, tmp_path):
    def step(rate):
        agent = agent_of(
            tiny_llms.opt, model_file=tmp_path / 'm', optimizer='sgd', learningrate=1.0, retriever_learningrate=rate
        )
        before = tensors(agent)
        feed(agent, MESSAGES)
        return {name: tensor - before[name] for name, tensor in tensors(agent).items()}

    same, slower = step(0.0), step(0.25)
    for name, change in same.items():
        assert change.abs().max() > 0
        torch.testing.assert_close(slower[name], change * (0.25 if 'retriever' in name else 1.0), rtol=1e-3, atol=1e-8)


@pytest.fixture(scope='module')
def model_file(tiny_llms, tmp_path_factory):
    path = tmp_path_factory.mktemp('batching') / 'm'
    train(path, tiny_llms.opt, max_train_steps=6)
    return path


@pytest.fixture(scope='module')
def one_by_one(model_file):
    return evaluate(model_file, batchsize=1)


@pytest.mark.parametrize(
    'options',
    [
        {'batchsize': 7},
        {'batchsize': 32},
        {'batchsize': 4, 'dynamic_batching': 'full'},
        {'batchsize': 4, 'dynamic_batching': 'batchsort'},
        {'batchsize': 5, 'datatype': 'valid:stream'},
    ],
)
def test_batches_change_no_metric_of_an_example(model_file, one_by_one, options):
    report = evaluate(model_file, **options)
    assert {name: report[name] for name in PER_EXAMPLE} == pytest.approx(
        {name: one_by_one[name] for name in PER_EXAMPLE}, rel=1e-5, abs=1e-8
    )


@pytest.fixture
def batches(monkeypatch):
    """The batches of training or evaluation, [[(context, target)]], and the number of padded tokens of each."""
    seen, tokens = [], []
    steps = {name: getattr(SptAgent, name) for name in ('train_step', 'eval_step')}
    for name in steps:

        def record(self, batch, step=steps[name]):
            pairs = zip(
                (row[row >= 0] for row in batch.text_vec), (row[row >= 0] for row in batch.label_vec), strict=True
            )
            seen.append([(tuple(t.tolist()), tuple(y.tolist())) for t, y in pairs])
            tokens.append(batch.text_vec.numel() + batch.label_vec.numel())
            return step(self, batch)

        monkeypatch.setattr(SptAgent, name, record)
    return seen, tokens


VARIED = {
    'task': 'integration_tests:variable_length',
    'batchsize': 16,
    'num_prompts': 1,
    'lambda_contrastive': 0,
    'skip_generation': True,
    'text_truncate': 100,
    'label_truncate': 40,
}


def counted(batches):
    return collections.Counter(pair for batch in batches for pair in batch)


def test_an_epoch_has_each_example_once(tiny_llms, tmp_path, batches):
    """In training in order, and in evaluation with every kind of batches."""
    seen, tokens = batches
    train(tmp_path / 'm', tiny_llms.opt, datatype='train:ordered', num_epochs=1, validation_every_n_epochs=-1, **VARIED)
    trained = [pair for batch in seen for pair in batch][:500]  # the last batch begins the next epoch
    epochs = []
    for options in ({}, {'dynamic_batching': 'full'}, {'dynamic_batching': 'batchsort'}):
        seen.clear()
        tokens.clear()
        evaluate(tmp_path / 'm', datatype='train:evalmode', **{**VARIED, **options})
        epochs.append(counted(seen))
        assert (max(map(len, seen)) > 16) == (options.get('dynamic_batching') == 'full')  # as many as their words allow
        assert max(tokens) <= (100 + 40) * 16
    assert sum(epochs[0].values()) == 500
    assert all(epoch == epochs[0] for epoch in (*epochs, counted([trained])))


@pytest.mark.parametrize(
    'options',
    [
        {'dynamic_batching': 'full', 'eval_dynamic_batching': 'off'},
        {'dynamic_batching': 'batchsort', 'eval_dynamic_batching': 'off'},
        {'datatype': 'train:stream'},
        {'datatype': 'train:ordered'},
        {'task': f'{SAMPLE},integration_tests:nocandidate'},
        {'eval_batchsize': 3},
    ],
    ids=str,
)
def test_a_stopped_run_continues_with_the_same_batches(tiny_llms, tmp_path, options):
    options = {
        'batchsize': 2,
        'log_every_n_steps': 1,
        'validation_every_n_steps': 2,
        'validation_max_exs': 4,
        **options,
    }
    train(tmp_path / 'whole', tiny_llms.opt, max_train_steps=7, **options)
    train(tmp_path / 'stopped', tiny_llms.opt, max_train_steps=3, **options)
    train(tmp_path / 'stopped', tiny_llms.opt, max_train_steps=7, **options)
    whole, stopped = logged(tmp_path / 'whole'), logged(tmp_path / 'stopped')
    assert {4, 5, 6} <= set(whole) & set(stopped)
    assert stopped == pytest.approx({step: whole[step] for step in stopped}, rel=1e-5)


@pytest.mark.parametrize(
    'options, size', [({'eval_batchsize': 3}, 3), ({'eval_dynamic_batching': 'batchsort'}, 4), ({}, 4)], ids=str
)
def test_validation_has_its_own_batches(tiny_llms, tmp_path, monkeypatch, options, size):
    sizes = []
    eval_step = SptAgent.eval_step

    def record(self, batch):
        sizes.append(batch.batchsize)
        return eval_step(self, batch)

    monkeypatch.setattr(SptAgent, 'eval_step', record)
    train(
        tmp_path / 'm',
        tiny_llms.opt,
        max_train_steps=1,
        validation_max_exs=-1,
        short_final_eval=False,
        skip_generation=True,
        **options,
    )
    assert max(sizes) == size and sum(sizes) == 108  # the test fold is the validation fold


# ---- the window -----------------------------------------------------------------------------------------

quick = settings(max_examples=60, deadline=None)

MAYBE = st.none() | st.integers(-1, 300)


@pytest.mark.parametrize(
    'config, size',
    [
        ({'max_position_embeddings': 2048}, 2048),
        ({'n_positions': 1024}, 1024),
        ({'seq_length': 8192}, 8192),
        ({'max_position_embeddings': None, 'n_ctx': 512}, 512),
        ({}, UNBOUNDED),
        ({'max_seq_len': 0}, UNBOUNDED),
    ],
)
def test_reads_the_window_of_a_configuration(config, size):
    assert window_size(SimpleNamespace(**config)) == size


def test_gives_the_context_what_is_left():
    assert share_window(2048, 8, None, None, 32) == (2048 - 8 - 128, 128)
    assert share_window(2048, 8, -1, -1, 200) == (2048 - 8 - 200, 128)
    assert share_window(160, 2, 50, 20, 4) == (50, 20)


@quick
@given(st.integers(1, 400), st.integers(1, 100), MAYBE, MAYBE, st.integers(1, 200))
def test_parts_fit_or_are_refused(window, prompt_length, text, label, new):
    try:
        context, target = share_window(window, prompt_length, text, label, new)
    except UsageError as error:
        assert '--' in str(error) and str(error).endswith('.')
        return
    assert context >= SMALLEST_CONTEXT and target >= 2
    assert prompt_length + context + max(target, new) <= window
    assert text in (None, -1, context) and label in (None, -1, target)


@pytest.mark.parametrize(
    'arguments, named',
    [
        (
            (160, 150, None, None, 4),
            ['--prompt-length 150', 'window of 160', '--label-truncate', '--max-new-tokens', 'smaller'],
        ),
        ((160, 2, None, None, 160), ['160 tokens of target', '--max-new-tokens', 'smaller']),
        ((160, 2, 100_000, None, 4), ['--text-truncate 100000', 'window of 160', '8 to 118']),
        ((160, 2, 3, None, 4), ['--text-truncate 3', '8 to 118']),
        ((160, 2, None, 1, 4), ['--label-truncate 1', 'at least 2']),
    ],
)
def test_says_what_does_not_fit(arguments, named):
    with pytest.raises(UsageError) as error:
        share_window(*arguments)
    assert all(part in str(error.value) for part in named), error.value
