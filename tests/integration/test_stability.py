"""Training stays finite in every precision and under every noise; steps that do not are skipped and never saved."""

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers import warm
from helpers.runs import AGENT, SAMPLE, SMALL, evaluate, logged, train, turns
from parlai.core.agents import create_agent
from parlai.core.worlds import create_task
from parlai.scripts.train_model import TrainModel

from spt_parlai.errors import UsageError


@pytest.fixture
def make(tiny_llms):
    """A training SptAgent and batches of the sample task for it."""

    def make(llm='opt', batches=8, **options):
        parser = TrainModel.setup_args()
        opt = parser.parse_kwargs(
            **{**SMALL, 'model': AGENT, 'task': SAMPLE, 'datatype': 'train', 'llm': getattr(tiny_llms, llm), **options}
        )
        agent = create_agent(opt)
        world = create_task(opt, agent)
        seen = []
        agent.train_step = seen.append  # collect what ParlAI makes of the task
        for _ in range(batches):
            world.parley()
        del agent.train_step
        return agent, seen

    return make


def step(agent, batch):
    """Run one training step; returns the loss that it recorded, or None."""
    agent._local_metrics.clear()
    agent.train_step(batch)
    recorded = agent._local_metrics.get('spt_loss')
    return float(recorded[0]) if recorded else None


def trained_tensors(agent):
    return {name: p.detach().clone() for name, p in agent.model.named_parameters()}


# ---- many steps, every precision, every noise of the paper's table 12 and beyond ------------------------------


@pytest.mark.parametrize('noise, steps', [(0.001, 150), (0.01, 150), (0.1, 150), (1.0, 500)])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_training_stays_finite(make, dtype, noise, steps):
    agent, batches = make(
        llm_dtype=dtype, gold_noise=noise, num_prompts=2, batchsize=1, text_truncate=24, label_truncate=8
    )
    start = trained_tensors(agent)
    losses = [step(agent, batches[i % len(batches)]) for i in range(steps)]
    assert agent._number_training_updates >= steps - 10  # float16 may skip a few while its loss scale settles
    assert None not in losses and torch.isfinite(torch.tensor(losses)).all() and sum(losses[-50:]) < sum(losses[:50])
    for name, tensor in trained_tensors(agent).items():
        assert (
            tensor.dtype == torch.float32 and torch.isfinite(tensor).all() and not torch.equal(tensor, start[name])
        ), name
    assert agent.model.llm.dtype == getattr(torch, dtype)


@pytest.mark.parametrize('dtype, tolerance', [('bfloat16', 0.1), ('float16', 0.02)])
def test_gradients_of_a_half_precision_llm(make, dtype, tolerance):
    """For the same prompts and batch, the gradient through a half-precision LLM is close to that in float32."""
    gradients = {}
    for name in ('float32', dtype):
        agent, batches = make(llm_dtype=name)
        agent.zero_grad()
        agent.backward(agent.compute_loss(batches[0]))
        if agent.optimization.scaler is not None:
            agent.optimization.scaler.unscale_(agent.optimizer)
        gradients[name] = torch.cat([p.grad.flatten() for p in agent.model.parameters()])
    error = (gradients[dtype] - gradients['float32']).norm() / gradients['float32'].norm()
    assert 0 < float(error) < tolerance


def test_float16_gradients_are_scaled(make):
    """Gradients too small for float16 survive: those of a loss times 1e-6 are close to those in float32."""
    gradients = {}
    for dtype in ('float32', 'float16'):
        agent, batches = make(llm_dtype=dtype, lambda_selection=0.0, lambda_contrastive=0.0, lambda_fusion=0.0)
        agent.zero_grad()
        agent.backward(1e-6 * agent.compute_loss(batches[0]))
        if agent.optimization.scaler is not None:
            agent.optimization.scaler.unscale_(agent.optimizer)
        gradients[dtype] = agent.model.soft_prompts.tokens.grad
    assert gradients['float32'].abs().max() < 1e-7  # float16 knows nothing that small
    error = (gradients['float16'] - gradients['float32']).norm() / gradients['float32'].norm()
    assert float(error) < 0.2


def test_fp16_switch_leaves_what_trains_in_float32(make):
    agent, batches = make(fp16=True)
    step(agent, batches[0])
    assert {p.dtype for p in agent.model.parameters()} == {torch.float32}
    assert {v.dtype for s in agent.optimizer.state.values() for v in s.values() if torch.is_tensor(v)} == {
        torch.float32
    }


# ---- what is not finite -------------------------------------------------------------------------------------


def poison(agent):
    """Make the LLM's output overflow from now on; returns a function that restores it."""
    head = agent.model.llm.lm.get_output_embeddings().weight
    healthy = head.detach().clone()
    with torch.no_grad():
        head.mul_(torch.inf)
    return lambda: head.data.copy_(healthy)


@pytest.mark.parametrize('update_freq', [1, 2])
def test_a_step_that_is_not_finite_is_skipped_and_counted(make, update_freq):
    agent, batches = make(update_freq=update_freq)
    for batch in batches[: 2 * update_freq]:
        step(agent, batch)
    before, updates = trained_tensors(agent), agent._number_training_updates
    assert updates == 2
    heal = poison(agent)
    step(agent, batches[0])
    heal()
    for batch in batches[1:update_freq]:  # the finite batches of the same update are skipped with it
        step(agent, batch)
    assert agent._number_training_updates == updates
    assert all(torch.equal(a, b) for a, b in zip(before.values(), trained_tensors(agent).values(), strict=True))
    assert agent.report()['skipped_steps'].value() == 1
    for batch in batches[:update_freq]:
        step(agent, batch)
    assert agent._number_training_updates == updates + 1
    assert not all(torch.equal(a, b) for a, b in zip(before.values(), trained_tensors(agent).values(), strict=True))


def test_an_infinite_loss_with_finite_gradients_is_skipped_too(make):
    agent, batches = make()
    loss = agent.compute_loss(batches[0])
    agent.backward(loss + torch.inf)
    agent.update_params()
    assert agent._number_training_updates == 0 and agent.report()['skipped_steps'].value() == 1


@pytest.mark.parametrize('limit', [1, 3])
def test_too_many_in_a_row_end_the_run(make, tmp_path, limit):
    agent, batches = make(max_skipped_steps=limit, model_file=str(tmp_path / 'model'))
    agent.save()
    heal = poison(agent)
    for _ in range(limit - 1):
        step(agent, batches[0])
    heal()
    step(agent, batches[0])  # a finite one: the count begins anew
    poison(agent)
    for _ in range(limit - 1):
        step(agent, batches[0])
    with pytest.raises(UsageError, match=f'not finite {limit} times in a row .* --learningrate') as error:
        step(agent, batches[0])
    assert f'The last good state is in {tmp_path / "model"}.' in str(error.value)


def test_no_limit(make):
    agent, batches = make(max_skipped_steps=0)
    poison(agent)
    for _ in range(30):
        step(agent, batches[0])
    assert agent.report()['skipped_steps'].value() == 30


@pytest.mark.parametrize('where', ['prompts', 'optimizer'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_checkpoint_is_never_written_with_it(make, tmp_path, where, value):
    path = tmp_path / 'model'
    agent, batches = make(model_file=str(path))
    step(agent, batches[0])
    agent.save()
    good = path.read_bytes()
    tensor = (
        agent.model.soft_prompts.tokens.data
        if where == 'prompts'
        else next(iter(agent.optimizer.state.values()))['exp_avg']
    )
    tensor.view(-1)[0] = value
    with pytest.raises(UsageError, match='no longer finite') as error:
        agent.save()
    assert str(path) in str(error.value) and path.read_bytes() == good


def test_a_diverging_run_ends_in_a_sentence_and_leaves_a_finite_file(tiny_llms, tmp_path):
    with pytest.raises(UsageError, match='lower --learningrate'):
        train(
            tmp_path / 'model',
            tiny_llms.opt,
            learningrate=1e38,
            optimizer='sgd',
            gradient_clip=-1,
            max_train_steps=20,
            max_skipped_steps=2,
            validation_every_n_steps=1,
            load_from_checkpoint=True,
        )
    for path in tmp_path.glob('model*'):
        if path.suffix in ('', '.checkpoint'):
            states = torch.load(path, weights_only=True)['model']
            assert all(torch.isfinite(t).all() for t in states.values())


def test_evaluation_of_an_llm_that_overflows_is_refused(make):
    agent, batches = make()
    poison(agent)
    batches[0].is_training = False
    with pytest.raises(
        UsageError, match='gives a loss that is not finite .* run it in --llm-dtype bfloat16 or float32'
    ):
        agent.compute_loss(batches[0])


# ---- noise and forced prompts through ParlAI's commands ------------------------------------------------------


@pytest.mark.parametrize('options', [{'gold_noise': 0.5}, {'llm_dtype': 'float16', 'gold_noise': 0.1}], ids=str)
def test_a_noisy_run_continues_exactly(tiny_llms, tmp_path, options):
    options = {
        'max_train_steps': 9,
        'log_every_n_steps': 1,
        'validation_every_n_steps': 3,
        'batchsize': 2,
        **options,
    }
    train(tmp_path / 'whole', tiny_llms.opt, **options)
    train(tmp_path / 'parts', tiny_llms.opt, **{**options, 'max_train_steps': 5})
    train(tmp_path / 'parts', tiny_llms.opt, **options)
    whole, parts = logged(tmp_path / 'whole'), logged(tmp_path / 'parts')
    assert [parts[i] for i in (6, 7)] == [whole[i] for i in (6, 7)]


@pytest.fixture(scope='module')
def trained(tiny_llms, tmp_path_factory):
    model_file = tmp_path_factory.mktemp('stable') / 'model'
    train(model_file, tiny_llms.opt, max_train_steps=6, log_every_n_steps=2, prompt_init='embedding-scale')
    return model_file


@pytest.fixture(scope='module')
def forced(trained, tmp_path_factory):
    """For each prompt, the report and the agent's acts of an evaluation in which every reply uses that prompt."""
    evaluations = []
    for k in range(3):
        log = tmp_path_factory.mktemp('forced') / 'log'
        report = evaluate(trained, force_prompt=k, world_logs=log, batchsize=1, num_examples=60)
        evaluations.append((report, [act for _, act in turns(log)]))
    return evaluations


@pytest.mark.parametrize('k', range(3))
def test_force_prompt(forced, k):
    report, acts = forced[k]
    assert [report[f'prompt_usage_{i}'] for i in range(3)] == [float(i == k) for i in range(3)]
    assert {act['selected_prompt'] for act in acts} == {k}


def test_force_prompt_gives_that_prompts_perplexity(forced):
    """The perplexities under the forced prompts differ; the NLL over all prompts does not depend on the selection."""
    assert len({round(report['ppl'], 4) for report, _ in forced}) == 3
    assert len({round(report['nll'], 5) for report, _ in forced}) == 1


def test_score_noise_is_one_draw_for_loss_reply_and_log(trained, forced, tmp_path):
    """Reply, log and metrics of a noisy selection use the same prompt."""
    options = {'batchsize': 1, 'num_examples': 60, 'verbose': False}
    report = evaluate(trained, score_noise=100.0, world_logs=tmp_path / 'log', **options)
    acts = [act for _, act in turns(tmp_path / 'log')]
    shares = [sum(act['selected_prompt'] == k for act in acts) / len(acts) for k in range(3)]
    assert shares == pytest.approx([report[f'prompt_usage_{k}'] for k in range(3)], abs=1e-6)
    assert min(shares) > 0.15
    for i, act in enumerate(acts):
        assert act['text'] == forced[act['selected_prompt']][1][i]['text']


def test_activation_beta_stays_with_the_model(tiny_llms, tmp_path):
    train(tmp_path / 'model', tiny_llms.opt, max_train_steps=2, activation_beta=1.0)
    assert json.loads((tmp_path / 'model.opt').read_text())['activation_beta'] == 1.0
    plain, other = (
        evaluate(tmp_path / 'model', skip_generation=True),
        evaluate(tmp_path / 'model', activation_beta=10.0, skip_generation=True),
    )
    assert (
        plain['ppl'] == other['ppl'] and plain['contrastive'] > other['contrastive']
    )  # scores near 1 point the same way


def test_prompts_from_texts(tiny_llms, tmp_path):
    texts = tmp_path / 'texts.txt'
    texts.write_text('i like tea\nhello there you\nmy name is anna\n', encoding='utf-8')
    one, two = ({}, {})
    for report, init in ((one, 'text:i like tea|hello there you|my name is anna'), (two, f'file:{texts}')):
        train(tmp_path / str(len(init)), tiny_llms.opt, max_train_steps=2, log_every_n_steps=1, prompt_init=init)
        report.update(logged(tmp_path / str(len(init))))
    assert one == two and one
    texts.unlink()  # a model that is trained needs the file no more
    assert evaluate(tmp_path / str(len(f'file:{texts}')), skip_generation=True)['exs'] > 0


def test_prompts_from_a_trained_model(trained, tiny_llms, tmp_path):
    """A run that begins with another model's prompts has them at its first step, and a new retriever."""
    train(tmp_path / 'model', tiny_llms.opt, max_train_steps=1, learningrate=0.0, prompt_init=f'file:{trained}')
    found, given = (torch.load(path, weights_only=True)['model'] for path in (tmp_path / 'model', trained))
    assert torch.equal(found['soft_prompts.tokens'], given['soft_prompts.tokens'])
    assert not torch.equal(found['retriever.lin_prompt.weight'], given['retriever.lin_prompt.weight'])
    with pytest.raises(UsageError, match='the file holds prompts of K 3, L 2, D 16, but K 4, L 2, D 16 is needed'):
        train(tmp_path / 'other', tiny_llms.opt, num_prompts=4, prompt_init=f'file:{trained}')


# ---- memory -------------------------------------------------------------------------------------------------


def train_without_memory(model_file):
    import resource

    from spt_parlai.agents import SptAgent

    build = SptAgent.build_model

    def then_limit(self):
        model = build(self)
        used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
        return model

    SptAgent.build_model = then_limit
    train(model_file, 'demo', batchsize=64, num_prompts=16, max_train_steps=1, prompt_length=8, label_truncate=None)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='limits its own memory the way Linux does')
def test_out_of_memory_names_what_helps(tmp_path):
    process = warm.Process(tmp_path / 'printed', train_without_memory, tmp_path / 'model')
    assert process.wait(120) == 1, process.printed[-3000:]
    last = process.printed.strip().splitlines()[-1]
    assert last.startswith('out of memory while training')
    for option in ('--prompt-chunk', '--checkpoint-activations', '--batchsize', '--llm-dtype', '--llm-device-map'):
        assert option in last
    assert 'Traceback' not in process.printed
