"""The page in a browser: it draws everything at once, without an error and without a request to another host."""

import re
import shutil
import subprocess

import pytest
from helpers.recorded_run import record, report, usage

from spt_parlai.checkpoints import metrics_log
from spt_parlai.dashboard.page import page

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no chromium is installed')


def opened(file, width):
    """(document, console) after the page's scripts have run."""
    flags = ('--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', '--virtual-time-budget=3000')
    done = subprocess.run(
        [CHROMIUM, *flags, f'--window-size={width},900', '--dump-dom', file.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    document = re.sub(r'<script.*?</script>', '', done.stdout, flags=re.DOTALL)
    return document, [line for line in done.stderr.splitlines() if 'CONSOLE' in line]


@pytest.mark.parametrize('width', [1280, 390])
def test_the_page_of_two_runs(tmp_path, width):
    runs = [record(tmp_path / name / 'model', seed=seed) for seed, name in enumerate('ab')]
    metrics_log.append(runs[1], 'valid', report(40, ppl=35.0, **usage(0.5, 0.5)))
    (tmp_path / 'page.html').write_text(page(runs, live=False), encoding='utf-8')
    document, console = opened(tmp_path / 'page.html', width)
    assert console == []
    assert document.count('<canvas') == 5  # those whose numbers the runs have, and perplexity
    assert document.count('retriever collapsed') == 1  # in the last validation of the first run
    assert document.count('best ppl in validation, step 20') == 2 and 'step 30 of 40, 2 min 0 s left' in document
    assert 'zero at 30' in document and 'hello &lt;b&gt;there&lt;/b&gt;' in document  # the last validation, as text
    assert 'reply 2: yes' in document and '2 of 2' in document and '<option value="i like tea.">' in document
    assert re.search(r'--seed</th><td>0</td><td>1</td>', document)


def test_the_page_of_a_run_without_reports(tmp_path):
    metrics_log.begin(tmp_path / 'm', {}, 0, [])
    (tmp_path / 'page.html').write_text(page([tmp_path / 'm'], live=False), encoding='utf-8')
    document, console = opened(tmp_path / 'page.html', 390)
    assert console == [] and 'no report yet' in document and '--log-replies' in document
