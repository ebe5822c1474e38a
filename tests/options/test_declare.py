"""An option is declared once: what the parser offers, what is refused and what the message says follow from that."""

from dataclasses import dataclass, field, fields

import pytest
import torch
from helpers.option_groups import GROUPS, check_all
from parlai.core.params import ParlaiParser

from spt_parlai.agents.in_context_api import IN_CONTEXT
from spt_parlai.agents.rag import RETRIEVAL
from spt_parlai.errors import UsageError
from spt_parlai.metrics.batch import loss_metrics
from spt_parlai.objective import SptObjective
from spt_parlai.objective.losses import Term
from spt_parlai.options.declare import Option, OptionGroup, belongs, options_of, token_count
from spt_parlai.options.groups import METRICS

SIZES = OptionGroup(
    'Sizes',
    (
        Option('width', 3, 'how wide', int, at_least=1),
        Option('share', 0.5, 'how much', float, above=0, below=1, note='never all of it'),
        Option('rank', None, 'how many', int, at_least=1),
        Option('shape', 'round', 'which shape', choices=('round', 'square')),
        Option('room', -1, 'tokens', int, check=token_count('room', 'all')),
        Option('depth', 2, 'how deep', int, needs=belongs('--shape square', lambda opt: opt.get('shape') == 'square')),
    ),
)


def refusal(**opt):
    with pytest.raises(UsageError) as error:
        SIZES.check(opt)
    return str(error.value)


def test_a_parser_offers_what_is_declared():
    parser = ParlaiParser(False, False)
    SIZES.add_to(parser)
    offered = {action.dest: action for action in parser._actions}
    for option in SIZES.options:
        action = offered[option.name]
        assert (action.default, action.help) == (option.default, option.help)
        assert list(action.choices or ()) == list(option.choices)
    assert parser.parse_args(['--width', '5', '--shape', 'square'])['width'] == 5


def test_what_a_parser_has_already_stays():
    parser = ParlaiParser(False, False)
    parser.add_argument('--width', type=int, default=7, help="a script's own")
    METRICS.add_to(parser)
    METRICS.add_to(parser)
    SIZES.add_to(parser)
    opt = parser.parse_args([])
    assert (opt['width'], opt['rank'], opt['paper_metrics']) == (7, None, True)


def test_an_option_of_two_groups_is_one():
    parser = ParlaiParser(False, False)
    IN_CONTEXT.add_to(parser)
    RETRIEVAL.add_to(parser)
    assert [action.dest for action in parser._actions].count('training_task') == 1


@pytest.mark.parametrize(
    'opt, sentence',
    [
        ({'width': 0}, '--width 0: give a whole number of at least 1.'),
        ({'width': 1.5}, '--width 1.5: give a whole number of at least 1.'),
        ({'width': None}, '--width None: give a whole number of at least 1.'),
        ({'width': True}, '--width True: give a whole number of at least 1.'),
        ({'share': 1}, '--share 1: give a number above 0 and below 1 (never all of it).'),
        ({'share': float('nan')}, '--share nan: give a number above 0 and below 1 (never all of it).'),
        ({'rank': 0}, '--rank 0: give a whole number of at least 1, or leave it out.'),
        ({'shape': 'flat'}, "--shape 'flat': choose from round, square."),
        ({'room': 0}, '--room 0: give a number of tokens, or -1 for all.'),
        ({'room': True}, '--room True: give a number of tokens, or -1 for all.'),
        ({'override': {'depth': 3}}, '--depth 3: it belongs to --shape square; add that or leave it out.'),
    ],
)
def test_refuses_in_one_sentence(opt, sentence):
    assert refusal(**opt) == sentence


@pytest.mark.parametrize(
    'opt',
    [
        {},
        {'width': 1, 'share': 0.99, 'rank': None, 'shape': 'square', 'room': -1},
        {'depth': 3, 'override': {}},
        {'override': {'depth': 2}},
        {'shape': 'square', 'override': {'depth': 3}},
        {'override': {'depth': None}},
    ],
)
def test_accepts(opt):
    SIZES.check(opt)


def test_every_default_works():
    opt = {option.name: option.default for group in GROUPS for option in group.options}
    check_all({**opt, 'override': {}})


def test_every_option_is_explained():
    for group in GROUPS:
        assert all(option.help and not option.help.endswith('.') for option in group.options), group.title


# ---- a loss is declared by one field --------------------------------------------------------------------------


def _sharpness(_objective, inputs):
    return Term(-torch.log_softmax(inputs.scores, -1).amax(-1))


@dataclass(frozen=True)
class FiveLosses(SptObjective):
    lambda_sharpness: float = field(
        default=0.5,
        metadata={'help': 'weight of the sharpness', 'at_least': 0.0, 'logged': 'sharpness', 'score_term': _sharpness},
    )


def test_a_fifth_loss_is_one_field():
    group = OptionGroup('Selective Prompt Tuning', options_of(FiveLosses))
    parser = ParlaiParser(False, False)
    group.add_to(parser)
    opt = parser.parse_args(['--lambda-sharpness', '0.25'])
    assert parser.parse_args([])['lambda_sharpness'] == 0.5 and 'weight of the sharpness' in parser.format_help()
    with pytest.raises(UsageError, match='^--lambda-sharpness -1.0: give a number of at least 0.$'):
        group.check({**opt, 'lambda_sharpness': -1.0})

    objective = FiveLosses(**{option.name: opt[option.name] for option in fields(FiveLosses)})
    log_probs, scores = torch.randn(2, 6).log_softmax(0), torch.randn(3, 2)
    example, similar = torch.tensor([0, 0, 1, 1, 2, 2]), torch.eye(3, dtype=torch.bool)
    losses = objective(log_probs, scores, example, similar)
    logged = {name: [metric.value() for metric in values] for name, values in loss_metrics(losses).items()}
    expected = -torch.log_softmax(scores, -1).amax(-1)
    assert logged['sharpness'] == pytest.approx(expected.tolist())
    four = SptObjective()(log_probs, scores, example, similar)
    assert float(losses.total - four.total) == pytest.approx(0.25 * float(expected.mean()), rel=1e-4)
