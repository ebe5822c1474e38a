"""The batched search equals ParlAI's own: tokens, texts, scores, details, and the random numbers that it draws."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.runs import AGENT, SAMPLE, evaluate, train
from parlai.core.agents import create_agent
from parlai.core.params import ParlaiParser
from parlai.core.teachers import create_task_agent_from_taskname
from parlai.core.torch_generator_agent import TorchGeneratorAgent

from spt_parlai.agents.base import LLMAgent
from spt_parlai.agents.generation import search_like
from spt_parlai.model import decoding

SIZES = (1, 3, 16)
SEARCHES = {
    'greedy': {},
    'n-grams': {'beam_block_ngram': 2},
    'words': {'beam_block_ngram': 1},
    'context': {'beam_context_block_ngram': 1, 'beam_block_ngram': 3},
    'short context': {'beam_context_block_ngram': 2, 'beam_block_full_context': False},
    'top-k': {'inference': 'topk', 'topk': 7},
    'nucleus': {'inference': 'nucleus', 'topp': 0.95, 'temperature': 1.7},
    'long': {'inference': 'topk', 'topk': 40, 'beam_min_length': 4, 'beam_block_ngram': 2},
}
OWN_LOOP = {
    'beam': {'inference': 'beam', 'beam_size': 2},
    'beam of one': {'inference': 'beam'},
    'sampled beam': {'inference': 'topk', 'beam_size': 2},
    'factual': {'inference': 'factual_nucleus'},
    'delayed': {'inference': 'delayedbeam'},
    'verbose': {'verbose': True},
}


def batch_search(agent):
    """The search for a whole batch that the agent uses, or None where ParlAI's own loop is needed."""
    like = agent._treesearch_factory(torch.device('cpu'), verbose=agent.show_token_details)
    return search_like(like.set_block_list(agent.beam_block_list), agent.temperature, 3)


def build(llm, **options):
    """An agent that uses all its prompts and whose LLM has weights large enough for varied replies."""
    opt = ParlaiParser(True, True).parse_kwargs(
        **{
            'model': AGENT,
            'llm': llm,
            'num_prompts': 3,
            'prompt_length': 2,
            'label_truncate': 24,
            'seed': 7,
            'datatype': 'valid',
            'score_noise': 100.0,
            'max_new_tokens': 12,
            **options,
        }
    )
    agent = create_agent(opt)
    agent.model.eval()
    with torch.no_grad():
        for weight in agent.bare_model.llm.lm.parameters():
            if weight.ndim > 1:
                weight.mul_(8)
    return agent


@pytest.fixture(scope='module')
def contexts():
    """Examples of the sample task's valid fold, as its teacher gives them."""
    teacher = create_task_agent_from_taskname(
        ParlaiParser(True, True).parse_kwargs(task=SAMPLE, datatype='valid', batchsize=1)
    )[0]
    return [teacher.act() for _ in range(40)]


def batches(agent, contexts, size):
    seen = []
    for message in contexts[:size]:
        seen.append(agent.observe(message))
        agent.self_observe({'text': message['eval_labels'][0]})
    agent.reset()
    return [agent.batchify(seen[i : i + size]) for i in range(0, len(seen), size)]


@torch.no_grad()
def outcomes(agent, batch, max_length=12, seed=5):
    """For our search and ParlAI's: best replies, each row's finished list, random state, evaluation output."""
    found = []
    for agent.searches_batches in (True, False):
        batch['selection'] = None  # drawn anew
        torch.manual_seed(seed)
        best, beams = agent._generate(batch, agent.beam_size, max_length)
        used = torch.get_rng_state()
        agent._local_metrics.clear()
        torch.manual_seed(seed)
        found.append((best, [beam.get_rescored_finished() for beam in beams], used, agent.eval_step(batch)))
    return found


def assert_same(agent, batch, **how) -> list[list[int]]:
    """Returns the tokens of the rows."""
    (best, finished, used, output), (best_, finished_, used_, output_) = outcomes(agent, batch, **how)
    assert len(best) == len(best_) == len(finished) == batch.batchsize
    for mine, theirs in zip([*best, *sum(finished, [])], [*best_, *sum(finished_, [])], strict=True):
        assert torch.equal(mine[0], theirs[0]) and mine[0].dtype == theirs[0].dtype
        assert mine[1].shape == theirs[1].shape and mine[1].dtype == theirs[1].dtype
        torch.testing.assert_close(mine[1], theirs[1], rtol=1e-5, atol=1e-5)
        assert mine[2] is theirs[2] is None
    assert torch.equal(used, used_), 'another number of random numbers was drawn'
    assert output.text == output_.text and output.selected_prompt == output_.selected_prompt
    for field in ('beam_texts_token_info', 'text_token_info', 'prompt_scores', 'token_losses', 'text_candidates'):
        assert output.get(field) == output_.get(field)
    for mine, theirs in zip(output.beam_texts, output_.beam_texts, strict=True):
        assert [text for text, _ in mine] == [text for text, _ in theirs]
        assert [score for _, score in mine] == pytest.approx([score for _, score in theirs], rel=1e-5, abs=1e-5)
    return [tokens.tolist() for tokens, _, _ in best]


@pytest.mark.parametrize('llm', ['opt', 'llama', 'gpt2'])
@pytest.mark.parametrize('kind', SEARCHES)
def test_every_search_that_runs_in_a_batch(tiny_llms, contexts, llm, kind):
    agent = build(getattr(tiny_llms, llm), **SEARCHES[kind])
    for size in SIZES:
        batch = batches(agent, contexts, size)[0]
        with torch.no_grad():
            assert batch_search(agent) is not None
        tokens = assert_same(agent, batch)
    assert len({tuple(reply) for reply in tokens}) > 2  # of sixteen contexts


@pytest.mark.parametrize('llm', ['opt', 'llama', 'gpt2'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_wherever_replies_end(tiny_llms, contexts, llm, dtype, monkeypatch):
    """Many tokens take turns at ending a reply: first of all, late, in all rows at once, or never."""
    if dtype != 'float32':  # other row counts may round differently there, and equal logits are common
        monkeypatch.setattr(decoding, '_LEAVING_SHARE', 2)
    agent = build(getattr(tiny_llms, llm), llm_dtype=dtype)
    batch, eos = batches(agent, contexts, 16)[0], agent.END_IDX
    tokens = assert_same(agent, batch)
    seen = set()
    for end in {tokens[0][1], tokens[1][1], *sorted({t for reply in tokens for t in reply[2:]})[:40:6]}:
        agent.END_IDX = end
        lengths = [len(reply) for reply in assert_same(agent, batch)]
        seen |= {'first'} if 2 in lengths else set()
        seen |= {'apart'} if len(set(lengths)) > 2 else set()
        seen |= {'never'} if 13 in lengths else set()
    assert seen == {'first', 'apart', 'never'}
    batch['text_vec'] = batch.text_vec[:1].expand(16, -1)
    agent.bare_model.force_prompt = 0  # sixteen times the same row
    agent.END_IDX = eos
    agent.END_IDX = assert_same(agent, batch)[0][2]
    assert len({len(reply) for reply in assert_same(agent, batch)}) == 1


@pytest.mark.parametrize('max_length', [1, 2, 5, 200])
def test_longest_replies(tiny_llms, contexts, max_length):
    agent = build(tiny_llms.opt, max_new_tokens=min(max_length, 40))
    tokens = assert_same(agent, batches(agent, contexts, 5)[0], max_length=max_length)
    assert max(map(len, tokens)) <= 1 + min(max_length, 40)


@pytest.mark.parametrize('options', OWN_LOOP.values(), ids=OWN_LOOP)
def test_what_needs_parlais_own_loop_gets_it(tiny_llms, contexts, options):
    agent = build(tiny_llms.opt, **options)
    batch = batches(agent, contexts, 2)[0]
    with torch.no_grad():
        assert batch_search(agent) is None
        assert len(agent.eval_step(batch).text) == 2


def test_blocked_words_and_given_beginnings_need_parlais_own_loop(tiny_llms, contexts):
    agent = build(tiny_llms.opt)
    batch = batches(agent, contexts, 2)[0]
    (tokens, _, _), *_ = agent._generate(batch, 1, 3, prefix_tokens=torch.tensor([[5], [5]]))[0]
    assert tokens[1] == 5
    agent.beam_block_list.add('hello')
    assert batch_search(agent) is None


def test_parlais_own_loop_never_sorts_the_cache_of_rows_that_stay(tiny_llms, contexts, monkeypatch):
    """ParlAI asks for one copy, of the encoder's states; the steps of a greedy search need none."""
    agent = build(tiny_llms.opt)
    agent.searches_batches = False
    sorted_anew, reorder = [], decoding._reorder_cache
    monkeypatch.setattr(decoding, '_reorder_cache', lambda *given: (sorted_anew.append(1), reorder(*given))[1])
    with torch.no_grad():
        agent._generate(batches(agent, contexts, 5)[0], 1, 12)
    assert len(sorted_anew) == 1


def test_world_logs_are_the_same(tiny_llms, tmp_path, monkeypatch):
    """Logs and report of a `parlai eval_model`; it does not enter ParlAI's loop if the batched search is on."""
    train(tmp_path / 'model', tiny_llms.llama, max_train_steps=4, validation_metric='f1', validation_metric_mode='max')
    entered, loop = [], TorchGeneratorAgent._generate
    monkeypatch.setattr(
        TorchGeneratorAgent, '_generate', lambda *given, **named: (entered.append(1), loop(*given, **named))[1]
    )
    found = []
    for batched in (True, False):
        monkeypatch.setattr(LLMAgent, 'searches_batches', batched)
        log = tmp_path / f'log{batched}'
        report = evaluate(tmp_path / 'model', batchsize=16, world_logs=str(log))
        assert bool(entered) != batched
        turns = [
            turn
            for line in (tmp_path / f'log{batched}.jsonl').read_text().splitlines()
            for turn in json.loads(line)['dialog']
        ]
        found.append(
            (
                [{k: v for k, v in turn[1].items() if k not in ('beam_texts', 'metrics')} for turn in turns],
                [text for turn in turns for text, _ in turn[1]['beam_texts']],
                [score for turn in turns for _, score in turn[1]['beam_texts']],
                {k: v for k, v in report.items() if k in ('f1', 'bleu-4', 'gen_n_toks', 'ppl')},
            )
        )
    (acts, texts, scores, report), (acts_, texts_, scores_, report_) = found
    assert len(acts) == 108 and acts == acts_ and texts == texts_
    assert scores == pytest.approx(scores_, rel=1e-5, abs=1e-5) and report == pytest.approx(report_, rel=1e-6)
