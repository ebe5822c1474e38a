"""`--adaptive-prompts`: which prompts begin again, from what, and the same in a resumed run."""

import pytest
import torch
from helpers.option_groups import check_all
from helpers.runs import logged, states, train, training_opt

from spt_parlai.agents.adaptive_prompts import begin_again, splits
from spt_parlai.errors import UsageError
from spt_parlai.model.soft_prompts import SharedPrompts, SoftPromptGroup


@pytest.mark.parametrize(
    'use, share, expected',
    [
        ([5, 5, 5, 5], 0.2, []),
        ([97, 1, 1, 1], 0.0, []),
        ([90, 1, 8, 1], 0.05, [(1, 0), (3, 0)]),  # 45, 45, 8, 1 after the first; the first of equal ones gives
        ([50, 0, 45, 5], 0.06, [(1, 0), (3, 2)]),  # 25, 25, 45, 5 after the first
        ([0, 4], 0.4, [(0, 1)]),
    ],
)
def test_which_prompts_begin_again(use, share, expected):
    assert splits(torch.tensor(use).float(), share) == expected


@pytest.mark.parametrize('rank', [0, 2])
def test_a_copy_and_its_optimizer(rank):
    torch.manual_seed(0)
    initial = torch.randn(3, 40, 50)
    group = SharedPrompts(initial, rank) if rank else SoftPromptGroup(initial)
    optimizer = torch.optim.Adam(group.parameters())
    group.tokens.pow(3).sum().backward()
    optimizer.step()
    before, moments = group.of_each.detach().clone(), optimizer.state[group.of_each]['exp_avg'].clone()
    begin_again(group, optimizer, 0, 2, torch.Generator().manual_seed(1))
    after = group.of_each.detach()
    assert torch.equal(after[1:], before[1:])
    noise = torch.randn(before[2].shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(after[0], before[2] + 0.1 * before.std() * noise)
    torch.testing.assert_close(optimizer.state[group.of_each]['exp_avg'], moments[[2, 1, 2]])
    assert optimizer.state[group.of_each]['step'] == 1


@pytest.mark.parametrize(
    'given, message',
    [
        ({'adaptive_prompts': 0.4}, r'--adaptive-prompts 0.4: give a share below 1/K \(0.333333 with --num-prompts 3'),
        ({'adaptive_prompts': 0.1, 'num_prompts': 1}, 'give a share below 1/K'),
        ({'adaptive_every': 5}, 'it belongs to --adaptive-prompts'),
    ],
)
def test_options_that_cannot_work(tiny_llms, given, message):
    with pytest.raises(UsageError, match=message):
        check_all(training_opt(tiny_llms.opt, **given))


def test_a_stopped_run_splits_as_a_whole_one(tiny_llms, tmp_path):
    run = {'adaptive_prompts': 0.33, 'adaptive_every': 2, 'log_every_n_steps': 1, 'batchsize': 2}
    run |= {'lambda_contrastive': 0.0, 'validation_every_n_epochs': -1, 'skip_generation': True}
    train(tmp_path / 'whole', tiny_llms.opt, **run, max_train_steps=5)
    train(tmp_path / 'stopped', tiny_llms.opt, **run, max_train_steps=3)
    before = states(tmp_path / 'stopped')['splits']
    train(tmp_path / 'stopped', tiny_llms.opt, **run, max_train_steps=5)
    whole, stopped = (states(tmp_path / name) for name in ('whole', 'stopped'))
    for name in ('model', 'use', 'splits'):
        torch.testing.assert_close(stopped[name], whole[name])
    assert {update for update, _, _ in before} == {2} and {update for update, _, _ in whole['splits']} == {2, 4}
    assert sum(logged(tmp_path / 'whole', 'prompts_split').values()) == len(whole['splits'])
    assert whole['use'].sum() > 0  # of the fifth batch
