"""Runs that were evaluated on several corpora: a table for each, from the reports and world logs that ParlAI writes."""

import json
from dataclasses import replace

import pytest

TASK = 'convai2:self,dailydialog'
PERSONA = 'your persona: i ski .\n'


def log_of(path, replies, persona=''):
    """A world log with two turns in each dialogue."""
    dialogues = [
        [
            [
                {'text': f'{persona if n == 0 else ""}message {d} {n}', 'eval_labels': [f'a b c d{d}']},
                {'text': reply, 'selected_prompt': n, 'prompt_scores': [0.5, 0.25]},
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
    used = project.tables.usage([table], *rest)
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
