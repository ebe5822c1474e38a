"""Runs that were evaluated on several corpora: a table for each, from the reports and world logs that ParlAI writes.

And what is measured on the logs alone.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.classifier import write_classifier
from typer.testing import CliRunner

from spt_parlai.dashboard.world_logs import read_turns
from spt_parlai.errors import UsageError
from spt_parlai.metrics.bertscore import BertScore
from spt_parlai.metrics.corpus import Distinct, NgramEntropy, SelfBleu
from spt_parlai.metrics.nli import Nli, c_scores
from spt_parlai.metrics.reply import persona_f1

TASK = 'convai2:self,dailydialog'
PERSONA = 'your persona: i ski .\n'


def log_of(path, replies, persona=''):
    """A world log with two turns in each dialogue."""
    dialogues = [
        [
            [
                {'text': f'{persona if n == 0 else ""}message {d} {n}', 'eval_labels': [f'a b c d{d}']},
                {'text': reply, 'selected_prompt': n, 'prompt_scores': [0.5 - n / 4, 0.25 + d / 9]},
            ]
            for n, reply in enumerate((replies[d], replies[d]))
        ]
        for d in range(len(replies))
    ]
    path.write_text(''.join(json.dumps({'dialog': dialogue}) + '\n' for dialogue in dialogues))


@pytest.fixture(scope='module')
def mixed(project, tmp_path_factory):
    """(table, size, seeds, place) of PT and SPT on two corpora, and of a PT on one of them, all finished."""
    grid = project.grid
    small = project.sizes.SIZES['smoke']
    size = replace(small, tasks={**small.tasks, 'mixed': TASK, 'told': 'dailydialog'})
    rows = [
        grid.Row('PT', 'demo', grid.prompt_tuning(size, 'demo', 'tuned', 'mixed')),
        grid.Row('SPT', 'demo', grid.spt(size, 'demo', 'tuned', 'mixed', num_prompts=2), 'PT'),
        grid.Row('PT, told', 'demo', grid.prompt_tuning(size, 'demo', 'tuned', 'told'), 'PT'),
    ]
    table = grid.TableOfRows('mixed', 'Two corpora', ('unigram_f1', 'ppl'), rows)
    place = project.runner.Place(tmp_path_factory.mktemp('mixed'), None, 1)
    used = {'prompt_usage_entropy': 0.5, 'selected_gain': 0.1, 'best_gain': 0.2}
    for n, row in enumerate(rows):
        for seed in (1, 2):
            job = grid.job_of(row, size, seed)
            folder, (evaluation,) = place.folder(job), job.evaluations
            folder.mkdir(parents=True)
            told = n == 2
            metrics = {'unigram_f1': 10 * (n + 1) + seed, 'ppl': 50 - n}
            if not told:
                of = {'convai2:self': 1, 'dailydialog': -1}
                metrics |= {f'{c}/{m}': v + of[c] for c in of for m, v in list(metrics.items())}
                metrics |= {f'{c}/prompt_usage_{k}': abs(k - (c == 'dailydialog')) for c in of for k in range(2)}
                metrics |= {f'{c}/{m}': v for c in of for m, v in used.items()}
            done = {'finished': True, 'seconds': 1, 'environment': {}, 'command': 'parlai', 'metrics': metrics}
            stages = {evaluation.key: {**done, 'options': dict(evaluation.options)}}
            about = {'name': job.name, 'task': job.task, 'commit': 'c', 'versions': {}}
            about['machine'] = {'cpu': 'x', 'cores': 1, 'gpus': []}
            project.runner.write_json(place.record(job), {**about, 'stages': stages})
            good, bad = ['a b c d'] * 9, ['x'] * 9
            if told:
                log_of(folder / 'eval.jsonl', good)
            else:
                log_of(folder / 'eval_convai2:self.jsonl', bad, PERSONA)
                log_of(folder / 'eval_dailydialog.jsonl', good if n else bad)
    return table, size, (1, 2), place


@pytest.fixture(scope='module')
def tables(project, mixed):
    return project.tables.build(*mixed)


def means(table, column):
    return {row['label']: row['cells'][column]['mean'] for row in table['rows']}


def test_a_table_for_each_corpus_follows_the_means_of_all(tables):
    assert [(t['name'], t['title']) for t in tables] == [
        ('mixed', 'Two corpora'),
        ('mixed-1', 'Two corpora: ConvAI2'),
        ('mixed-2', 'Two corpora: DailyDialog'),
    ]
    assert means(tables[0], 'unigram_f1') == {'PT': 11.5, 'SPT': 21.5}
    assert means(tables[1], 'unigram_f1') == {'PT': 12.5, 'SPT': 22.5}
    assert means(tables[2], 'unigram_f1') == {'PT': 10.5, 'SPT': 20.5, 'PT, told': 31.5}
    assert means(tables[2], 'ppl') == {'PT': 49, 'SPT': 48, 'PT, told': 48}


def test_rows_are_tested_on_the_replies_of_each_corpus(tables):
    _, convai2, dailydialog = ([row.get('p') for row in table['rows']] for table in tables)
    assert convai2[1]['unigram_f1'] == 1  # the same replies
    assert dailydialog[1]['unigram_f1'] < 0.01 and dailydialog[2]['unigram_f1'] < 0.01
    gains = [row['gain']['mean'] for row in tables[2]['rows'][1:]]
    assert gains == pytest.approx([100 * (10 / 10 + 10 / 11) / 2, 100 * (21 / 10 + 21 / 11) / 2])


def test_the_use_of_the_prompts_is_told_for_each_corpus(project, mixed):
    table, *rest = mixed
    used = project.prompt_use.usage([table], *rest)
    assert {row['label']: row['shares'] for row in used} == {
        'mixed: SPT, ConvAI2': [[0, 1], [0, 1]],
        'mixed: SPT, DailyDialog': [[1, 0], [1, 0]],
    }


def test_figures_show_each_corpus_and_pairs_come_from_all(project, mixed, tables, tmp_path):
    table, size, seeds, place = mixed
    report = project.report_of_runs
    models = report.two_models([table], size, seeds, place, 'PT', 'SPT')
    assert [len(turns) for turns in models.values()] == [36, 36]
    assert len({turn.dialogue for turn in models['SPT']}) == 18
    page = report.make([table], tables, size, ('demo',), seeds, place, None).read_text()
    for part in tables:
        assert f'<h2 id="{part["name"]}">{part["title"]}</h2>' in page
    assert 'Style of each prompt: SPT, ConvAI2' in page


# ---- measured on the logs ------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def nli(tiny_llms, tmp_path_factory):
    return str(
        write_classifier(tmp_path_factory.mktemp('nli'), tiny_llms.opt, 'entailment', 'contradiction', 'neutral')
    )


@pytest.fixture(scope='module')
def further(project, mixed, nli):
    """The tables of ConvAI2 with further measures: (main, further, logs of PT with both seeds)."""
    table, size, seeds, place = mixed
    table = table._replace(rows=table.rows[:2], further=project.paper_figures.FURTHER)
    for n, row in enumerate(table.rows):
        for seed in seeds:
            folder = place.folder(project.grid.job_of(row, size, seed))
            replies = [f'i ski {"and i run" * n} {d % (3 + seed + n)}' for d in range(9)]
            log_of(folder / 'eval_convai2:self.jsonl', replies, PERSONA)
    built = project.tables.build(table, size, seeds, place, project.measures.Models(nli=nli))
    assert [t['name'] for t in built] == ['mixed', 'mixed-1', 'mixed-1-further', 'mixed-2', 'mixed-2-further']
    jobs = [project.grid.job_of(table.rows[0], size, seed) for seed in seeds]
    return built[1], built[2], [read_turns(place.folder(job) / 'eval_convai2:self.jsonl') for job in jobs]


def test_further_measures_are_those_of_the_replies(further, nli):
    main, table, logs = further
    assert main['columns'] == ['unigram_f1', 'ppl']
    assert table['columns'] == ['ent2', 'ent4', 'dist1_equal', 'dist2_equal', 'self_bleu', 'persona_f1', 'c_score']
    cells = {name: cell['mean'] for name, cell in table['rows'][0]['cells'].items()}
    replies = [[turn.reply for turn in log] for log in logs]
    assert cells['ent2'] == pytest.approx(np.mean([NgramEntropy(texts, 2).value() for texts in replies]))
    assert cells['self_bleu'] == pytest.approx(np.mean([SelfBleu(texts).value() for texts in replies]))
    f1 = [100 * persona_f1(turn.reply, 'i ski .') for log in logs for turn in log]
    assert cells['persona_f1'] == pytest.approx(np.mean(f1)) and cells['persona_f1'] > 0
    scores = [c_scores(Nli(nli), texts, [('i ski .',)] * len(texts)) for texts in replies]
    assert cells['c_score'] == pytest.approx(np.mean(scores))


def test_dist_at_equal_counts_takes_the_smallest_number_of_all_rows(further):
    _, table, logs = further
    pt, spt = table['rows']
    assert table['equal'] == {1: 18 * 3, 2: 18 * 2}  # PT says three words, SPT six
    whole = [Distinct([turn.reply for turn in log], (1,)).value() for log in logs]
    assert pt['cells']['dist1_equal']['mean'] == pytest.approx(np.mean(whole))
    assert spt['cells']['dist1_equal']['mean'] > 0
    assert any('of 54 words and 36 pairs' in remark for remark in table['remarks'])


def test_further_measures_are_tested_and_the_absent_ones_explained(project, further):
    _, table, _ = further
    assert {'ent2', 'dist1_equal', 'self_bleu', 'persona_f1', 'c_score'} <= table['rows'][1]['p'].keys()
    note = project.table_text.note(table)
    assert 'MAUVE needs mauve-text and an LM: report --mauve FOLDER.' in note and 'C.score needs' not in note
    header, *_ = project.table_text.lines(table)
    assert 'C.score' in header and not any('AVG' in word for word in header)


def test_bertscore_of_the_logs_is_bert_scores(project, further, tiny_llms, mixed):
    pytest.importorskip('bert_score')
    table, size, seeds, place = mixed
    models = project.measures.Models(bertscore=tiny_llms.bart, bertscore_layer=1)
    models.check()
    table = table._replace(rows=table.rows[:2], columns=('bertscore_f1',))
    _, convai2, _ = project.tables.build(table, size, seeds, place, models)
    _, _, logs = further
    wanted = [BertScore([(t.reply, (t.label,)) for t in log], models.bert(), 'f1').value() for log in logs]
    assert convai2['rows'][0]['cells']['bertscore_f1']['mean'] == pytest.approx(np.mean(wanted))
    assert convai2['rows'][1]['p'].keys() >= {'bertscore_f1', 'bertscore_p', 'bertscore_r'}
    assert 'bertscore_f1' in convai2['gain_columns']


def test_what_takes_long_is_computed_once(project, further, mixed, monkeypatch, nli):
    table, size, seeds, place = mixed
    table = table._replace(rows=table.rows[:2], further=project.paper_figures.FURTHER)
    monkeypatch.setattr(project.measures, 'Nli', None)  # what is kept needs no model
    monkeypatch.setattr(project.significance, 'permutation_test', None)
    again = project.tables.build(table, size, seeds, place, project.measures.Models(nli=nli))
    assert again[2] == further[1]


def test_every_part_of_a_table_has_its_number(project):
    names = ('table1', 'table1-further', 'table4-further', 'table9-2-further', 'mixed-1')
    titles = [project.table_text.title({'name': name, 'title': 'PT: x'}) for name in names]
    assert titles == [
        'Table 1. PT: x',
        'Table 1, further. PT: x',
        'Table 4 and 8, further. PT: x',
        'Table 9-2, further. PT: x',
        'PT: x',
    ]


def test_a_table_without_its_logs_has_no_tests(project, mixed):
    table, size, seeds, place = mixed
    table = table._replace(rows=table.rows[:2], further=project.paper_figures.FURTHER)
    for row in table.rows:
        for seed in seeds:
            (place.folder(project.grid.job_of(row, size, seed)) / 'eval_dailydialog.jsonl').unlink()
    *_, dailydialog = project.tables.build(table, size, seeds, place)
    assert dailydialog['name'] == 'mixed-2' and 'gain' in dailydialog['rows'][1] and 'p' not in dailydialog['rows'][1]


def test_shares_are_shown_in_percent(project):
    assert project.tables.scale('hits@1') == 100 and project.table_text.in_percent('hits@1')
    assert project.tables.scale('unigram_f1') == 1 and not project.table_text.in_percent('ent2')


def test_the_gain_without_dist_leaves_dist_out(project, mixed):
    table, size, seeds, place = mixed
    metrics = [{'unigram_f1': 10.0, 'dist1': 1.0}, {'unigram_f1': 11.0, 'dist1': 2.0}]
    for row, values in zip(table.rows, metrics, strict=False):
        for seed in seeds:
            path = place.record(project.grid.job_of(row, size, seed))
            record = json.loads(path.read_text())
            record['stages']['eval']['metrics'].update({f'convai2:self/{m}': v for m, v in values.items()})
            path.write_text(json.dumps(record))
    columns = ('unigram_f1', 'dist1')
    _, convai2, _ = project.tables.build(table._replace(columns=columns), size, seeds, place)
    spt = convai2['rows'][1]
    assert spt['gain']['mean'] == pytest.approx((10 + 100) / 2) and spt['gain_without_dist']['mean'] == pytest.approx(
        10
    )
    header, *rows = project.table_text.lines(convai2)
    assert header[-2:] == ['AVG↑', 'AVG↑ without DIST'] and rows[1][-1].startswith('+10.0%')


def test_the_papers_gain_without_dist_follows_from_its_figures(project):
    size = project.sizes.SIZES['paper']
    table = project.grid.table_1(size, size.llms)
    rows = {row.label: row for row in table.rows}
    figures = [project.paper_figures.TABLE_1[f'Llama2-7B {label}'] for label in ('SPT', 'PT')]
    names = [name for name in figures[0] if not name.startswith('dist')]
    wanted = np.mean([100 * (figures[0][name] / figures[1][name] - 1) for name in names])
    assert project.tables._papers_gain(rows['Llama2-7B SPT'], rows) == pytest.approx(wanted)


@pytest.mark.parametrize(
    'option, told',
    [
        ('--nli', 'the model could not be loaded'),
        ('--mauve', 'mauve-text is not installed'),
        ('--bertscore', 'bert-score is not installed'),
    ],
)
def test_models_that_cannot_be_used_are_refused_first(project, tmp_path, monkeypatch, option, told):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    models = project.measures.Models(**{option[2:]: str(tmp_path)})
    with pytest.raises(UsageError, match=f'{option} {tmp_path}: {told}'):
        models.check()
    shown = CliRunner().invoke(project.experiments.app, ['report', '--help'], terminal_width=200).output
    assert option in shown
