"""The experiments as runs of seconds: each happens once and can continue; tables and page show what was measured."""

import base64
import csv
import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from spt_parlai.dashboard.world_logs import read_turns
from spt_parlai.errors import UsageError
from spt_parlai.metrics.gain import TABLE_1
from spt_parlai.metrics.registry import REPLY_METRICS
from spt_parlai.objective import SptObjective


@pytest.fixture(scope='module')
def asked(project, tiny_llms, tmp_path_factory):
    """(folder of the runs, the words that follow `run`)."""
    out = tmp_path_factory.mktemp('experiments')
    options = ('max_train_steps=3', 'log_every_n_steps=1', 'label_truncate=24', 'prompt_length=2')
    words = ['table9', '--size', 'smoke', '--settings', 'tuned', '--llm', tiny_llms.opt, '--jobs', '2']
    return out, [*words, *(word for option in options for word in ('--set', option)), '--out', str(out)]


def run(project, *words):
    result = CliRunner().invoke(project.experiments.app, list(map(str, words)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope='module')
def finished(project, asked):
    """A folder in which PT and SPT have finished."""
    out, words = asked
    result = run(project, 'run', *words)
    assert result.exit_code == 0, result.output + ''.join(p.read_text()[-2000:] for p in out.glob('runs/*/*.log'))
    return out


def records(out):
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(out.glob('runs/*/run.json'))}


# ---- running ---------------------------------------------------------------------------------------------


def test_every_run_leaves_a_record_of_what_it_was(finished):
    made = records(finished)
    assert len(made) == 2 and {r['agent'] for r in made.values()} == {'PromptTuningAgent', 'SptAgent'}
    for name, record in made.items():
        assert (record['status'], record['name'], record['seed']) == ('finished', name, 1)
        assert record['versions']['torch']
        train, evaluation = record['stages']['train'], record['stages']['eval']
        assert train['command'].startswith('parlai train_model ')
        assert f'-m spt_parlai.agents:{record["agent"]}' in train['command']
        assert '--seed 1' in train['command'] and train['train_steps'] == 3 and train['epoch_hours'] > 0
        assert train['seconds'] > train['train_seconds'] > 0 and train['cpu_seconds'] > 0
        assert train['environment']['OMP_NUM_THREADS']
        report = json.loads((finished / 'runs' / name / 'eval.json').read_text())['report']
        assert evaluation['metrics'] == {k: v for k, v in report.items() if isinstance(v, (int, float))}
        assert report['exs'] == 24


def test_what_is_finished_is_not_run_again_and_what_is_missing_is(project, asked, finished):
    out, words = asked
    before = {path: path.stat().st_mtime_ns for path in out.glob('runs/*/*')}
    result = run(project, 'run', *words)
    assert '2 runs, 2 of them finished before' in result.output and {p: p.stat().st_mtime_ns for p in before} == before
    path, record = next(
        (p, r) for p in out.glob('runs/*/run.json') if (r := json.loads(p.read_text()))['agent'] == 'PromptTuningAgent'
    )
    evaluation = record['stages'].pop('eval')
    path.write_text(json.dumps(record))
    assert run(project, 'run', *words, '--dry-run').output.split() == evaluation['command'].split()
    longer = run(project, 'run', *words, '--dry-run', '--set-eval', 'num_examples=32').output.splitlines()
    assert len(longer) == 2  # another evaluation of the same training
    more = [*words, '--dry-run', '--set-eval', 'num_examples=32', '--rows', 'SPT']
    assert run(project, 'run', *more).output.splitlines() == [line for line in longer if 'runs/spt-' in line]
    assert all(line.startswith('parlai eval_model') for line in longer)
    assert '2 runs, 1 of them finished before' in run(project, 'run', *words).output
    again = json.loads(path.read_text())['stages']
    assert again['train'] == record['stages']['train']
    timed = {'exps', 'ltps', 'ctps', 'tps'}
    assert {k: v for k, v in again['eval']['metrics'].items() if k not in timed} == {
        k: v for k, v in evaluation['metrics'].items() if k not in timed
    }


def test_a_run_that_fails_is_reported_and_the_others_go_on(project, asked, finished, tmp_path):
    job, *_ = project.grid.jobs_of(
        [project.grid.table_1(project.sizes.SIZES['smoke'], ('/no/such/llm',))], project.sizes.SIZES['smoke'], (1,)
    )
    # Nothing is missing of this job.
    good = project.grid.Job('good', 'SptAgent', 'demo', 'spt_parlai.tasks.sample', 1, None, ())
    place = project.runner.Place(tmp_path, None, 1)
    console = project.experiments.Console(record=True, width=400)
    failed = project.runner.Runner(place, 1, [], console)([job, good])
    record = json.loads((tmp_path / 'runs' / job.name / 'run.json').read_text())
    assert failed == [job.name] and record['status'] == 'failed' and '/no/such/llm' in record['error']
    assert 'FAILED' in console.export_text()
    assert list(record['stages']) == ['train'] and record['stages']['train']['returncode'] != 0


@pytest.mark.parametrize(
    'words, named',
    [
        (['table1', '--size', 'huge'], '--size huge'),
        (['table6'], 'table6'),
        (['table7'], 'judged by people'),
        (['table1', '--seeds', 'one'], '--seeds one'),
        (
            ['table1', '--rows', 'nothing'],
            '--rows nothing: no row is called so; there are: demo PT; demo PT of 32',
        ),
        (['table1', '--jobs', '0'], '--jobs 0'),
        (['table1', '--set', 'steps'], '--set steps'),
        (['table1', '--data', '/no/such/folder'], '--data /no/such/folder'),
        (['table1', '--settings', 'best'], "'best'"),
    ],
)
def test_what_cannot_run_is_refused_in_a_sentence(project, tmp_path, words, named):
    result = run(project, 'run', *words, '--out', tmp_path / 'out')
    assert result.exit_code == 1 and named in result.output and len(result.output.splitlines()) == 1
    assert not (tmp_path / 'out').exists()


def test_an_output_folder_below_a_file_is_refused_in_a_sentence(project, tmp_path):
    (tmp_path / 'file').touch()
    result = run(project, 'run', 'table1', '--size', 'smoke', '--out', tmp_path / 'file' / 'out')
    assert result.exit_code == 1 and f'--out {tmp_path}/file/out: {tmp_path}/file is a file' in result.output


def test_a_report_needs_runs(project, tmp_path):
    assert 'begin with `run`' in run(project, 'report', '--out', tmp_path).output


# ---- grid ------------------------------------------------------------------------------------------------


def test_tables_share_runs_and_all_options_tell_them_apart(project):
    size, llms = project.sizes.SIZES['small'], ('demo',)
    every = [make(size, llms) for make in project.grid.TABLES.values()]
    jobs = project.grid.jobs_of(every, size, (1, 2))
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    rows = {(table.name, row.label): project.grid.job_of(row, size, 1).name for table in every for row in table.rows}
    same = [('table2', 'all losses'), ('table3', 'K = 4'), ('table4', 'SPT'), ('table11', 'α = 0.1')]
    assert {rows[row] for row in same} == {rows['table1', 'demo SPT, tuned']}
    assert rows['table1', 'demo SPT, tuned'] != rows['table1', 'demo SPT'] != rows['table9', 'SPT']
    seeded = {name for name in rows.values() if name.endswith('seed1')}
    assert len(seeded) * 2 + 2 == len(names)  # two rows have no seed
    shared = next(job for job in jobs if job.name == rows['table11', 'α = 1'])
    assert len(shared.evaluations) == 1 + len(size.noises)
    seeds = [job.seed for job in jobs if job.seed]
    assert seeds == sorted(seeds)


def test_every_loss_of_the_objective_is_switched_off_once(project):
    size = project.sizes.SIZES['paper']
    table = project.grid.table_2(size, size.llms)
    all_losses, *without = (row for row in table.rows if row.method.agent == 'SptAgent')
    switched = [dict(row.method.train.items() - all_losses.method.train.items()) for row in without]
    assert switched == [{f'lambda_{name}': 0} for name in SptObjective.losses()]
    assert [row.label for row in without] == [f'without the {name} loss' for name in SptObjective.losses()]
    assert {row.label for row in table.rows if row.paper} == set(project.paper_figures.TABLE_2)


def test_every_column_of_a_table_is_a_metric_with_a_title(project):
    size = project.sizes.SIZES['small']
    columns = {column for make in project.grid.TABLES.values() for column in make(size, ('demo',)).columns}
    assert columns <= set(project.table_text.TITLES)
    assert columns - {'epoch_hours'} <= {metric.name for metric in REPLY_METRICS}


def test_settings_are_those_of_table_6(project):
    size = project.sizes.SIZES['paper']
    rows = {row.label: row.method.train for row in project.grid.table_1(size, size.llms).rows}
    of_table_6 = ('prompt_length', 'learningrate', 'num_epochs')
    assert {label: tuple(t[name] for name in of_table_6) for label, t in rows.items() if label.endswith(' SPT')} == {
        'OPT-125M SPT': (8, 0.01, 15),
        'OPT-1.3B SPT': (8, 0.01, 1),
        'OPT-2.7B SPT': (8, 0.001, 1),
        'Llama2-7B SPT': (1, 0.01, 1),
    }
    assert rows['OPT-125M SPT']['num_prompts'] == 4 and rows['OPT-125M PT of 32 tokens']['prompt_length'] == 32


# ---- tables ----------------------------------------------------------------------------------------------


def test_tables_are_recomputed_from_the_evaluation_reports(finished):
    table, _ = json.loads((finished / 'report' / 'tables.json').read_text())['tables']
    paths = [finished / 'runs' / row['runs'][0] / 'eval.json' for row in table['rows']]
    reports = [json.loads(path.read_text())['report'] for path in paths]
    for row, report in zip(table['rows'], reports, strict=True):
        assert {c: cell['mean'] for c, cell in row['cells'].items()} == {c: report[c] for c in TABLE_1 if c in report}
        assert len(row['cells']) == 7 and row['cells']['dist2']['sd'] is None
    pt, spt = reports
    wanted = [100 * (spt[c] - pt[c]) / pt[c] for c in table['gain_columns']]
    assert table['rows'][1]['gain']['mean'] == pytest.approx(np.mean(wanted))
    assert table['rows'][1]['against'] == table['rows'][0]['label']
    assert set(table['gain_columns']) == {c for c in TABLE_1 if pt.get(c)}
    text = (finished / 'report' / 'tables.md').read_text()
    assert f'{spt["unigram_f1"]:.2f}' in text and f'{np.mean(wanted):+.1f}%' in text


def test_seeds_become_mean_deviation_and_students_interval(project):
    s = project.tables.spread([1.0, 2.0, 6.0])
    assert s['mean'] == 3 and s['sd'] == pytest.approx(7**0.5) and s['n'] == 3
    assert s['interval'] == pytest.approx([3 - 4.302653 * (7 / 3) ** 0.5, 3 + 4.302653 * (7 / 3) ** 0.5], rel=1e-5)
    assert project.tables.spread([4.0])['interval'] is None


def test_a_gain_leaves_out_columns_that_the_baseline_lacks(project):
    columns = project.tables.gain_columns(
        {'unigram_f1': 2.0, 'rouge2': 1.0, 'dist1': 3.0}, {'unigram_f1': 1.0, 'rouge2': 0.0, 'sacrebleu': 1.0}
    )
    assert columns == ('unigram_f1',)


def table_of(rows):
    return {'name': 'table1', 'title': 'PT & SPT', 'columns': ['unigram_f1', 'ppl'], 'gain_columns': [], 'rows': rows}


def row_of(label, f1, ppl, **more):
    cells = {'unigram_f1': f1, 'ppl': ppl}
    cells = {name: {'mean': mean, 'sd': None, 'interval': None, 'n': 1} for name, mean in cells.items()}
    always = {'llm': 'x', 'seeds': [1], 'runs': ['r'], 'against': None, 'paper': None, 'paper_gain': None}
    return {'label': label, 'cells': cells, **always, **more}


def test_the_best_is_bold_and_what_differs_has_a_sign(project, tmp_path):
    p = {'unigram_f1': 0.004, 'ppl': 0.2}
    paper = {'unigram_f1': 17.5}
    rows = [
        row_of('PT, 50%', 18, 40),
        row_of('SPT', 19, 41, against='PT, 50%', p=p, paper=paper),
        row_of('PT', 1, 9, llm='y'),
    ]
    project.tables.mark_best(rows)
    assert [row['best'] for row in rows] == [['ppl'], ['unigram_f1'], []]  # lower ppl; nothing to compare
    table = table_of(rows)
    project.table_text.write([table], None, tmp_path)
    text = (tmp_path / 'tables.md').read_text()
    assert '| PT, 50% | 18.00 | **40.00** |' in text and '| SPT | **19.00‡** | 41.00 |' in text
    assert 'Bold: the best of its LLM. † p < 0.05, ‡ p < 0.01: ' in text
    tex = (tmp_path / 'tables.tex').read_text()
    assert r'SPT & \textbf{19.00$^{\ddagger}$} & 41.00 \\' in tex and r'PT, 50\% & 18.00' in tex and r'PT \& SPT' in tex
    with (tmp_path / 'tables.csv').open(newline='') as file:
        found = {(line['row'], line['metric']): line for line in csv.DictReader(file)}
    line = found['SPT', 'unigram_f1']
    assert (line['mean'], line['p'], line['against'], line['paper']) == ('19', '0.004', 'PT, 50%', '17.5')
    assert len(found) == 6


# ---- report ----------------------------------------------------------------------------------------------


def test_rows_lead_to_their_runs_and_these_to_curves_and_replies(finished):
    page = (finished / 'report' / 'index.html').read_text()
    table, _ = json.loads((finished / 'report' / 'tables.json').read_text())['tables']
    names = [name for row in table['rows'] for name in row['runs']]
    assert len(names) == 2
    for name in names:
        assert f'<a href="#{name}"' in page and f'<div id="{name}">' in page and f'href="runs.html#{name}"' in page
    browser = (finished / 'report' / 'runs.html').read_text()
    data = json.loads(re.findall(r'id="data">(.*?)</script>', browser, flags=re.DOTALL)[0])
    assert [(run['name'], run['title']) for run in data['runs']] == [
        (row['runs'][0], f'{row["label"]}, seed 1') for row in table['rows']
    ]
    assert [len(data['replies'][name]) for name in names] == [24, 24] and len(data['runs'][0]['train']) == 2


def test_prompts_are_numbered_from_0(finished):
    page = (finished / 'report' / 'index.html').read_text()
    shown = {int(k) for k in re.findall(r'prompt (\d)', page)}
    log = next(finished.glob('runs/spt-*/eval.jsonl'))
    assert shown and shown <= {turn.prompt for turn in read_turns(log)}


def test_the_page_holds_every_figure_and_command_and_loads_nothing(finished):
    page = (finished / 'report' / 'index.html').read_text()
    figures = sorted((finished / 'report').glob('*.png'))
    assert {f.stem for f in figures} == {'figure2', 'figure3', 'figure4', 'scores', 'training'}
    for figure in figures:
        assert base64.b64encode(figure.read_bytes()).decode() in page
    for record in records(finished).values():
        assert all(
            stage['command'] in page.replace('&#39;', "'").replace('&amp;', '&') for stage in record['stages'].values()
        )
    assert 'http' not in page.split('<body>')[1].split('id="commands"')[0]
    assert '<script' not in page and '<link' not in page


def test_the_gains_of_the_selection_are_those_of_the_evaluation(project, finished):
    """The gains of the evaluation report reach the table and the page; the selection gains no more than the best."""
    (row,) = json.loads((finished / 'report' / 'tables.json').read_text())['usage']
    (metrics,) = [r['stages']['eval']['metrics'] for r in records(finished).values() if r['agent'] == 'SptAgent']
    gains = project.prompt_use.GAINS
    assert {name: row[name]['mean'] for name in gains} == {name: metrics[name] for name in gains}
    assert abs(metrics['selected_gain']) <= metrics['best_gain'] * 3 and metrics['best_gain'] > 0
    assert f'{metrics["best_gain"]:.3f}' in (finished / 'report' / 'index.html').read_text()


def test_figures_count_what_the_log_says(project, finished):
    log = next(p for p in finished.glob('runs/spt-*/eval.jsonl'))
    acts = [(t, pair[1]) for line in log.read_text().splitlines() for t, pair in enumerate(json.loads(line)['dialog'])]
    turns = read_turns(log)
    counts = project.figures.usage_counts(turns, 4)
    assert counts.sum() == len(acts) == 24
    for t in range(counts.shape[1]):
        assert counts[:, t].tolist() == [sum(a['selected_prompt'] == k for n, a in acts if n == t) for k in range(4)]
    rates, _ = project.figures.pattern_rates(turns, 'e', 4)
    k, n = np.argwhere(counts > 0)[0]
    mine = [t.reply for t in turns if (t.prompt, t.number - 1) == (k, n)]
    assert rates[k, n] == sum('e' in reply for reply in mine) / len(mine) and np.isnan(rates[counts == 0]).all()
    points, explained = project.figures.projected_scores(turns)
    scores = np.log([t.scores for t in turns])
    assert points.var(0).sum() == pytest.approx(scores.var(0).sum() * explained.sum(), rel=1e-4)


def test_two_models_talk_side_by_side(project, finished):
    shown = run(project, 'chat-pairs', '--dialogues', 1, '--out', finished)
    pt, spt = (read_turns(next(finished.glob(f'runs/{name}/eval.jsonl'))) for name in ('prompt*', 'spt*'))
    assert spt[0].said in shown.output and f'SPT, DailyDialog: {spt[1].reply}'.strip() in shown.output
    pairs = project.figures.paired_dialogues(pt, spt, 99)
    assert sum(len(d['turns']) for d in pairs) == 24 and pairs[0]['turns'][1]['right'] == spt[1].reply


# ---- annotation ------------------------------------------------------------------------------------------


def test_a_sheet_is_blind_and_shuffled_and_its_scores_add_up(project, finished, tmp_path):
    shown = run(project, 'sheet', '--out', finished, '--replies', 10)
    path = finished / 'annotation' / 'sheet.csv'
    key = json.loads(path.with_suffix('.key.json').read_text())
    with path.open(newline='', encoding='utf-8-sig') as file:
        rows = list(csv.DictReader(file))
    models = sorted(set(key.values()))
    assert len(rows) == 20 and [list(key.values()).count(m) for m in models] == [10, 10] and 'key' in shown.output
    assert 'SPT' not in path.read_text() and [key[r['id']] for r in rows[:10]] != [models[0]] * 10
    filled = []
    for judge in range(2):
        for row in rows:
            spt = 'SPT' in key[row['id']]
            scores = (2 if spt else 0, int(row['id']) % 3, judge)
            row.update(zip(project.paper_figures.JUDGED, scores, strict=True))
        filled.append(tmp_path / f'judge{judge}.csv')
        project.annotation.write_sheet(rows, key, filled[-1])
    run(project, 'score-sheets', *filled, '--key', path.with_suffix('.key.json'))
    result = json.loads((finished / 'annotation' / 'table7.json').read_text())
    pt, spt = (result['models'][m] for m in sorted(models, key=lambda m: 'SPT' in m))
    persona = 'persona consistency'
    assert (spt[persona]['mean'], pt[persona]['mean'], spt[persona]['n']) == (2, 0, 20)
    assert spt['engagingness']['mean'] == 0.5
    assert result['agreement']['context consistency'] == 1 and result['agreement']['engagingness'] == 0


def test_a_sheet_with_anything_but_scores_is_refused(project, tmp_path):
    rows = [
        {'id': '001', 'persona': '', 'dialogue': '', 'reply': '', **dict.fromkeys(project.paper_figures.JUDGED, '3')}
    ]
    project.annotation.write_sheet(rows, {'001': 'PT'}, tmp_path / 's.csv')
    with pytest.raises(UsageError, match="row 2, persona consistency: '3' is no score"):
        project.annotation.read_scores(tmp_path / 's.csv', {'001': 'PT'})
    with pytest.raises(UsageError, match='not in the key'):
        project.annotation.read_scores(tmp_path / 's.csv', {'002': 'PT'})


def voted(preferred, text='hi', n=0):
    messages = [
        {'role': 'system', 'content': 'i ski.\ni bake.'},
        {'role': 'user', 'content': f'hello {n} !'},
        {'role': 'assistant', 'content': 'hey'},
        {'role': 'user', 'content': 'and ?'},
    ]
    replies = [{'model': model, 'text': f'{text} {model}', 'messages': messages} for model in ('spt', 'pt')]
    return {'kind': 'comparison', 'preferred': preferred, 'replies': replies}


def test_votes_of_the_chat_page_are_counted_and_become_a_sheet(project, tmp_path):
    entries = [{'kind': 'rating', 'rating': 1}, voted('pt'), *(voted('spt', n=n) for n in range(6))]
    entries += [voted('tie', n=9), voted('spt')]  # the last changes the first vote
    path = tmp_path / 'ratings.jsonl'
    path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
    shown = run(project, 'votes', path).output
    assert 'spt: 6 of 7\n' in shown and 'pt: 0 of 7\n' in shown and 'equal: 1 of 7\n' in shown
    assert f'p: {2 * 0.5**6:.3g}\n' in shown
    with (tmp_path / 'ratings.sheet.csv').open(newline='', encoding='utf-8-sig') as file:
        rows = list(csv.DictReader(file))
    key = json.loads((tmp_path / 'ratings.sheet.key.json').read_text())
    assert len(rows) == 14 and all(row['reply'] == f'hi {key[row["id"]]}' for row in rows)
    assert {row['persona'] for row in rows} == {'i ski.\ni bake.'}
    assert rows[0]['dialogue'].endswith(' !\nB: hey\nA: and ?') and len({row['dialogue'] for row in rows}) == 7
    assert [key[row['id']] for row in rows] != ['spt', 'pt'] * 7
    assert set(project.annotation.read_scores(tmp_path / 'ratings.sheet.csv', key)) == set()


@pytest.mark.parametrize(
    'content, told',
    [('', 'holds no vote'), ('{\n', 'is no file of ratings'), ('{"kind": "comparison"}\n', 'is no file of ratings')],
)
def test_ratings_without_votes(project, tmp_path, content, told):
    (tmp_path / 'ratings').write_text(content)
    with pytest.raises(UsageError, match=told):
        project.annotation.read_votes(tmp_path / 'ratings')


def test_votes_of_three_models_are_refused(project):
    other = voted('x')
    other['replies'][0]['model'] = 'x'
    with pytest.raises(UsageError, match=r'of 3 models \(pt, spt, x\)'):
        project.annotation.count_votes([voted('spt'), other])
