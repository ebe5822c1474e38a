"""`--candidates-per-prompt`: the candidates, their scores against full passes in float64, and the logs."""

import math

import pytest
import torch
from helpers.runs import AGENTS, SAMPLE, evaluate, train, turns
from parlai.core.agents import create_agent
from parlai.core.params import ParlaiParser
from parlai.core.teachers import create_task_agent_from_taskname
from parlai.scripts.self_chat import SelfChat

from spt_parlai.errors import UsageError
from spt_parlai.metrics.ranking import consensus, persona_overlap

K, N = 3, 2
DRAWN = {'candidates_per_prompt': N, 'inference': 'topk', 'topk': 12}


@pytest.fixture(scope='module')
def contexts():
    parser = ParlaiParser(True, True)
    teacher = create_task_agent_from_taskname(parser.parse_kwargs(task=SAMPLE, datatype='valid', batchsize=1))[0]
    return [teacher.act() for _ in range(4)]


def build(llm, agent='SptAgent', **options):
    spt = {'num_prompts': K, 'prompt_length': 2, 'tau_score': 0.5} if agent == 'SptAgent' else {}
    given = {**DRAWN, 'label_truncate': 24, 'seed': 7, 'datatype': 'valid', 'max_new_tokens': 7, **spt, **options}
    agent = create_agent(ParlaiParser(True, True).parse_kwargs(model=AGENTS + agent, llm=llm, **given))
    agent.model.eval()
    with torch.no_grad():
        for weight in agent.bare_model.llm.lm.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)
    return agent


def batches(agent, contexts, size):
    seen = []
    for message in contexts:
        seen.append(agent.observe(message))
        agent.self_observe({'text': message['eval_labels'][0]})
    agent.reset()
    return [agent.batchify(seen[i : i + size]) for i in range(0, len(seen), size)]


@torch.no_grad()
def evaluated(agent, contexts, size=4):
    """(context ids, persona, scores of the prompts, the reply, its candidates) of every example."""
    found = []
    for batch in batches(agent, contexts, size):
        agent._local_metrics.clear()
        output = agent.eval_step(batch)
        ids = [[i for i in row if i >= 0] for row in batch.text_vec.tolist()]
        scores = batch['selection'].scores
        found += zip(ids, batch.texts['persona'], scores, output.text, output.candidates, strict=True)
    return found


def naive_log_prob(agent, prompt, context, target) -> float:
    """log p(target | prompt, context) in float64: one row, no padding, no cache."""
    model = agent.bare_model
    row = torch.cat([model.soft_prompts.tokens[prompt], model.llm.embed(torch.tensor([*context, *target[:-1]]))])
    logits = model.llm.lm(inputs_embeds=row[None]).logits[0, -len(target) :].double()
    return float(torch.log_softmax(logits, -1)[range(len(target)), target].sum())


def naive_mixture(agent, scores, context, text, prompts=range(K)) -> float:
    target = agent.batcher.target(text, 24)[0]
    weights = [math.exp(float(scores[k]) / agent.opt.get('tau_score', 1.0)) for k in prompts]
    total = sum(w * math.exp(naive_log_prob(agent, k, context, target)) for w, k in zip(weights, prompts, strict=True))
    return math.log(total / sum(weights)) / len(target)


@torch.no_grad()
@pytest.mark.parametrize('by', ['likelihood', 'mmi', 'mbr', 'persona'])
def test_scores_and_order(tiny_llms, contexts, by):
    more = {'rank_by': by, **({'mmi_lambda': 0.3} if by == 'mmi' else {})}
    agent = build(tiny_llms.llama, **more)
    nothing = [agent.dict.bos, *agent.dict.piece('context:', True), *agent.dict.piece('R:', False)]
    for context, persona, scores, said, candidates in evaluated(agent, contexts):
        assert len(candidates) == 1 + K * N and said == candidates[0]['text']
        assert [c['rank'] for c in candidates] == list(range(len(candidates)))
        texts = [c['text'] for c in candidates]
        if by == 'mbr':
            expected = consensus(texts)
        elif by == 'persona':
            expected = [persona_overlap(text, persona) for text in texts]
        else:
            expected = [naive_mixture(agent, scores, context, text) for text in texts]
        if by == 'mmi':
            without = [naive_mixture(agent, scores, nothing, text) for text in texts]
            expected = [given - 0.3 * alone for given, alone in zip(expected, without, strict=True)]
        found = [c['score'] for c in candidates]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert found == sorted(found, reverse=True)
        prompts = sorted(c['prompt'] for c in candidates)
        assert sorted([*range(K)] * N + [int(scores.argmax())]) == prompts
        assert len(set(texts)) > 3


def test_the_likeliest_reply_is_one_of_them_and_draws_need_no_company(tiny_llms, contexts):
    agent = build(tiny_llms.llama)
    together = evaluated(agent, contexts)
    torch.manual_seed(99)
    apart = evaluated(agent, contexts, 1)
    for one, other in zip(together, apart, strict=True):
        assert [(c['text'], c['prompt']) for c in one[4]] == [(c['text'], c['prompt']) for c in other[4]]
    again = build(tiny_llms.llama, seed=8)
    again.load_state_dict(agent.bare_model.state_dict())
    others = evaluated(again, contexts)
    assert [c['text'] for row in together for c in row[4]] != [c['text'] for row in others for c in row[4]]
    agent.opt.update(candidates_per_prompt=0, inference='greedy')
    with torch.no_grad():
        agent._local_metrics.clear()
        searched = agent.eval_step(batches(agent, contexts, 4)[0]).text
    for text, row in zip(searched, together, strict=True):
        assert text in [c['text'] for c in row[4]]


@pytest.mark.parametrize('agent', ['PromptTuningAgent', 'TextPromptAgent', 'InContextAgent'])
def test_agents_with_one_prompt(tiny_llms, contexts, agent):
    agent = build(tiny_llms.llama, agent)
    for *_, said, candidates in evaluated(agent, contexts[:2]):
        assert len(candidates) == 1 + N and {c['prompt'] for c in candidates} == {0} and said == candidates[0]['text']


def test_a_forced_prompt_draws_alone(tiny_llms, contexts):
    agent = build(tiny_llms.llama, force_prompt=2, inference='nucleus', topk=10)
    for context, _, scores, _, candidates in evaluated(agent, contexts[:2]):
        assert len(candidates) == 1 + N and {c['prompt'] for c in candidates} == {2}
        with torch.no_grad():
            expected = [naive_mixture(agent, scores, context, c['text'], [2]) for c in candidates]
        assert [c['score'] for c in candidates] == pytest.approx(expected, rel=1e-4)


def test_logs_keep_the_candidates_and_repeat(tiny_llms, tmp_path):
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=2)
    logs = []
    for i, batchsize in enumerate((4, 3)):
        log = tmp_path / f'log{i}'
        evaluate(tmp_path / 'm', batchsize=batchsize, num_examples=8, world_logs=str(log), seed=5, **DRAWN)
        logs.append({turn[0]['text']: turn[1]['candidates'] for turn in turns(log)})
    shared = logs[0].keys() & logs[1].keys()
    assert len(shared) > 4 and all(len(logs[0][text]) == 1 + K * N for text in shared)
    assert [[c['text'] for c in logs[0][t]] for t in shared] == [[c['text'] for c in logs[1][t]] for t in shared]
    chats = []
    for i in range(2):
        out = tmp_path / f'chat{i}.jsonl'
        SelfChat.main(
            model_file=str(tmp_path / 'm'), num_self_chats=1, selfchat_max_turns=2, outfile=str(out), seed=5, **DRAWN
        )
        said = [act for turn in turns(out) for act in turn if 'candidates' in act]
        chats.append([(act['text'], act['candidates']) for act in said])
    assert chats[0] == chats[1] and chats[0]
    assert all(text == candidates[0]['text'] for text, candidates in chats[0])


def test_a_chat_draws_candidates_whatever_the_model_file_skips(tiny_llms):
    agent = build(tiny_llms.llama, 'TextPromptAgent', skip_generation=True, interactive_mode=True, persona='')
    agent.observe({'text': 'hello', 'episode_done': False})
    assert len(agent.act()['candidates']) == 1 + N


@pytest.mark.parametrize(
    'options, named, way_out',
    [
        ({'candidates_per_prompt': -1}, '--candidates-per-prompt -1', 'at least 0'),
        ({'candidates_per_prompt': 2}, '--candidates-per-prompt 2', '--inference topk'),
        ({'candidates_per_prompt': 2, 'inference': 'beam'}, '--candidates-per-prompt 2', 'topk or nucleus'),
        ({**DRAWN, 'beam_block_list_filename': 'f'}, '--candidates-per-prompt 2', '--beam-block-list-filename'),
        ({**DRAWN, 'skip_generation': True}, '--candidates-per-prompt 2', '--skip-generation'),
        ({'rank_by': 'mbr'}, "--rank-by 'mbr'", '--candidates-per-prompt'),
        ({**DRAWN, 'rank_by': 'best'}, "--rank-by 'best'", 'likelihood, mmi, mbr, persona'),
        ({**DRAWN, 'mmi_lambda': 0.2}, '--mmi-lambda 0.2', '--rank-by mmi'),
        ({**DRAWN, 'rank_by': 'mmi', 'mmi_lambda': -0.2}, '--mmi-lambda -0.2', 'at least 0'),
    ],
)
def test_what_cannot_work_is_refused(options, named, way_out):
    from spt_parlai.agents.ranked_replies import CANDIDATES

    opt = {**{o.name: o.default for o in CANDIDATES.options}, **options, 'override': options}
    with pytest.raises(UsageError) as error:
        CANDIDATES.check(opt)
    assert named in str(error.value) and way_out in str(error.value)
