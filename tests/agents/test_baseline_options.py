"""Each agent accepts only the options that affect it."""

from pathlib import Path

import pytest
from helpers.runs import AGENTS
from parlai.scripts.train_model import TrainModel

from spt_parlai.agents import SptAgent
from spt_parlai.errors import UsageError

PRESETS = Path(__file__).parents[2] / 'opt_presets'
SHOWN_IN_THIS_FOLDER = {
    'PromptTuningAgent': {'prompt_length', 'prompt_init', 'prompt_init_noise'},
    'FullFineTuningAgent': set(),
    'TextPromptAgent': {'prompt_text'},
    'LoraAgent': {'lora_rank', 'match_spt', 'lora_alpha', 'lora_dropout', 'lora_targets'},
}


def offered(agent: str) -> set[str]:
    parser = TrainModel.setup_args()
    parser.parse_args(['-m', AGENTS + agent])
    return {action.dest for action in parser._actions}


@pytest.mark.parametrize('agent', SHOWN_IN_THIS_FOLDER)
def test_has_the_shared_options_and_its_own(agent):
    of_spt_alone = {
        'num_prompts',
        'activation_beta',
        'lambda_selection',
        'lambda_contrastive',
        'lambda_fusion',
        'tau_gold',
        'tau_score',
        'similarity_threshold',
        'contrastive_text',
        'contrastive_pairs',
        'gold_noise',
        'score_noise',
        'force_prompt',
        'prompt_chunk',
        'retriever_learningrate',
        'log_replies',
        'prompt_assignment',
        'assignment_epsilon',
        'assignment_balance',
        'assignment_window',
        'prompt_shared_rank',
        'similarity_metric',
        'similarity_encoder',
        'embedding_threshold',
        'adaptive_prompts',
        'adaptive_every',
    }
    prompts = {'prompt_length', 'prompt_init', 'prompt_init_noise'}
    assert offered('SptAgent') >= of_spt_alone | prompts
    assert offered(agent) == offered('SptAgent') - of_spt_alone - prompts | SHOWN_IN_THIS_FOLDER[agent]


def test_an_option_of_another_agent_is_refused(capsys):
    with pytest.raises(SystemExit):
        TrainModel.setup_args().parse_args(['-m', f'{AGENTS}LoraAgent', '--lambda-fusion', '0'])
    assert 'unrecognized arguments: --lambda-fusion 0' in capsys.readouterr().err
    with pytest.raises(
        UsageError,
        match='opt_125m.opt: num_prompts is no option of -m spt_parlai.agents:LoraAgent; give a preset of this',
    ):
        TrainModel.setup_args().parse_args(['-o', str(PRESETS / 'opt_125m.opt'), '-m', f'{AGENTS}LoraAgent'])


@pytest.mark.parametrize(
    'agent, rate', [('PromptTuningAgent', 0.01), ('LoraAgent', 1e-3), ('FullFineTuningAgent', 2e-5)]
)
def test_learning_rates(agent, rate):
    assert TrainModel.setup_args().parse_args(['-m', AGENTS + agent])['learningrate'] == rate
    assert SptAgent.kind == 'SptAgent'


@pytest.mark.parametrize(
    'preset, agent', [('opt_125m_prompt_tuning', 'PromptTuningAgent'), ('opt_125m_lora', 'LoraAgent')]
)
def test_presets_differ_from_spts_in_the_agent_alone(preset, agent):
    def parsed(name):
        return TrainModel.setup_args().parse_args(['-o', str(PRESETS / f'{name}.opt')])

    own, spt = parsed(preset), parsed('opt_125m')
    assert own['model'] == AGENTS + agent
    for name in ('task', 'llm', 'num_epochs', 'batchsize', 'fp16', 'inference', 'max_new_tokens', 'optimizer'):
        assert own[name] == spt[name]
