"""The printed forms of a report."""

from spt_parlai.metrics.report_table import GROUPS, report_line, report_table, usage

SPT = {
    'ppl': 20.8348,
    'token_acc': 0.4021,
    'sacrebleu': 1.8311,
    'spt_loss': 15.4,
    'selection': 0.0037,
    'prompt_usage_10': 0.5,
    'prompt_usage_2': 0.25,
    'prompt_usage_0': 0.25,
    'prompt_usage_entropy': 0.75,
    'exs': 12907,
    'ltpb': 3.0,
}


def test_line_has_the_loss_perplexity_and_use_of_the_prompts():
    assert report_line(SPT) == 'spt_loss 15.4  ppl 20.83  selection 0.0037  prompts 25 25 50 %'


def test_line_of_an_agent_with_one_prompt():
    assert report_line({'ppl': 20.0, 'exs': 3}) == 'ppl 20'


def test_usage_is_in_the_order_of_the_prompts():
    assert usage(SPT) == [0.25, 0.25, 0.5]
    of_a_task = {f'convai2/{name}': value for name, value in SPT.items()}
    assert usage({**SPT, **of_a_task}, 'convai2/') == [0.25, 0.25, 0.5]  # each prompt once


def test_table_groups_what_the_report_has_and_leaves_out_the_rest():
    assert report_table(SPT) == '\n'.join(
        (
            'quality',
            '  ppl                      20.83         perplexity of a token',
            '  token_acc                40.21  %      tokens that are the most probable ones',
            '  sacrebleu                1.831  %      BLEU of all replies',
            'losses',
            '  spt_loss                  15.4         the objective (eq. 6)',
            '  selection               0.0037         selection KL (eq. 3)',
            'prompts',
            '  prompt_usage          25 25 50  %      contexts that select each prompt, from prompt 0',
            '  prompt_usage_entropy      0.75         1: even use; 0: one prompt is always selected',
            'speed and lengths',
            '  exs                     12,907         replies evaluated',
        )
    )


def test_tasks_have_columns_of_their_own():
    report = {'ppl': 3.0, 'exs': 30, 'a/ppl': 2.0, 'a/exs': 10, 'b:self/ppl': 4.0, 'b:self/exs': 20}
    header, _, ppl, *_ = report_table(report).splitlines()
    assert header.split() == ['all', 'a', 'b:self']
    assert ppl.split()[:4] == ['ppl', '3', '2', '4']


def test_empty_report():
    assert report_table({}) == report_line({}) == ''


def test_every_metric_stands_once():
    names = [row.name for rows in GROUPS.values() for row in rows]
    assert len(names) == len(set(names))
