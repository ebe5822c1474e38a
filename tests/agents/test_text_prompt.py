"""The text-prompt agent: a text before the context of a frozen LLM, and nothing to train."""

import pytest
import torch
from helpers.real_agents import computed, heard
from helpers.runs import evaluate, options
from parlai.core.agents import create_agent, create_agent_from_model_file
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.train_model import TrainModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from spt_parlai.errors import UsageError

DIALOGUES = [
    (['i ski.'], ['hi'], 'hello , how are you ?'),
    ([], ['what do you do ?', 'i am a nurse .', 'nice . why ?'], 'money .'),
]
CONTEXTS = [
    'given persona: i ski.; context: Q: hi R:',
    'context: Q: what do you do ? R: i am a nurse . Q: nice . why ? R:',
]
TEXT = 'You are kind ,  and speak\nplainly .'  # used as given, with its spaces and its line break


def agent_with(llm, text, **more):
    opt = EvalModel.setup_args().parse_kwargs(
        task='spt_parlai.tasks.sample',
        model='spt_parlai.agents:TextPromptAgent',
        llm=llm,
        prompt_text=text,
        label_truncate=24,
        no_cuda=True,
        **more,
    )
    return create_agent(opt)


@pytest.mark.parametrize('text', ['', TEXT])
@pytest.mark.parametrize('llm', ['opt', 'llama'])
def test_is_the_plain_llm_after_bos_text_and_context(tiny_llms, llm, text):
    folder = getattr(tiny_llms, llm)
    agent = agent_with(folder, text)
    assert not list(agent.model.parameters()) and not agent.model.state_dict()
    observations = heard(agent, DIALOGUES)
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for observation, context in zip(observations, CONTEXTS, strict=True):
        whole = f'{text} {context}' if text else context
        shown = tokenizer.decode(observation['text_vec'][1:], clean_up_tokenization_spaces=False)
        assert observation['text_vec'][0] == tokenizer.bos_token_id and shown.split() == whole.split()
        if text:
            assert shown.startswith(text)
        ids = [*observation['text_vec'].tolist(), *observation['eval_labels_vec'].tolist()]
        labels = torch.tensor([[-100] * len(observation['text_vec']) + ids[len(observation['text_vec']) :]])
        with torch.no_grad():
            expected = lm(input_ids=torch.tensor([ids]), labels=labels).loss
            torch.testing.assert_close(
                computed(agent, agent.batchify([observation]))[0], expected, rtol=1e-5, atol=1e-5
            )


def test_the_text_stays_where_older_turns_are_cut(tiny_llms):
    agent = agent_with(tiny_llms.opt, TEXT, text_truncate=48)
    (observation,) = heard(agent, [(['i ski.'], ['hi there', 'oh'] * 4 + ['why'], 'yes')])
    assert len(observation['text_vec']) <= 48 < observation['context_original_length']
    assert agent.dict.vec2txt(observation['text_vec'][1:].tolist()).startswith(TEXT)


def test_evaluates_and_replies_without_a_model_file_and_from_one(tiny_llms, tmp_path):
    given = {
        'model': 'spt_parlai.agents:TextPromptAgent',
        'llm': tiny_llms.opt,
        'prompt_text': TEXT,
        'num_examples': 4,
        'label_truncate': 24,
    }
    report = evaluate(**given)
    assert report['exs'] == 4 and report['gen_n_toks'] > 0 and not [name for name in report if 'prompt_usage' in name]
    agent_with(tiny_llms.opt, TEXT).save(str(tmp_path / 'm'))
    stored = evaluate(tmp_path / 'm', num_examples=4)
    assert stored['ppl'] == report['ppl'] != evaluate(**{**given, 'prompt_text': ''})['ppl']
    agent = create_agent_from_model_file(str(tmp_path / 'm'), {'interactive_mode': True, 'persona': 'i ski.'})
    agent.observe({'text': 'hi', 'episode_done': False})
    reply = agent.act()
    assert isinstance(reply['text'], str) and 'selected_prompt' not in reply


def test_there_is_nothing_to_train(tiny_llms, tmp_path):
    with pytest.raises(
        UsageError, match='^-m spt_parlai.agents:TextPromptAgent has nothing to train: run parlai eval_model'
    ):
        TrainModel.main(**options(tiny_llms.opt, 'TextPromptAgent', model_file=tmp_path / 'm'))


def test_a_text_must_leave_room_for_the_context(tiny_llms):
    with pytest.raises(
        UsageError,
        match="^--prompt-text 'so so .*: it is 600 tokens long, and the context has room for 120; shorten it.$",
    ):
        agent_with(tiny_llms.opt, 'so ' * 200)
