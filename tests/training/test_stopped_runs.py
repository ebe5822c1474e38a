"""A SIGKILL at any moment leaves a state from which the same command goes on to the same numbers (see stopped_runs.py).

SPT_KILLS=20 python -m pytest tests/training/test_stopped_runs.py     # 20 random kills and every deliberate one
"""

import os
import subprocess
import sys
from pathlib import Path

KILLS = int(os.environ.get('SPT_KILLS', '2'))


def test_killed_runs_end_as_one_left_alone(tiny_llms, tmp_path):
    script = Path(__file__).with_name('stopped_runs.py')
    deliberate = 'all' if KILLS >= 20 else str(KILLS)
    done = subprocess.run(
        [
            sys.executable,
            script,
            '--llm',
            tiny_llms.opt,
            '--work',
            tmp_path,
            '--random',
            str(KILLS),
            '--deliberate',
            deliberate,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    print(done.stdout)  # with the seed of what was drawn
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert f'{KILLS} random and ' in done.stdout
