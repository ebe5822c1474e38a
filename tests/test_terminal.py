"""A terminal that cannot show a character prints a question mark in its place."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    'encoding, printed', [('ascii', b'caf? ? ?'), ('latin-1', b'caf\xe9 ? ?'), ('utf-8', 'café 🙂 ?'.encode())]
)
def test_what_cannot_be_printed_is_replaced(encoding, printed):
    run = subprocess.run(
        [sys.executable, '-c', r"import spt_parlai; print('caf\xe9 \U0001f642 \ud83d')"],
        env={**os.environ, 'PYTHONIOENCODING': encoding},
        capture_output=True,
        check=True,
    )
    assert run.stdout.split(b'\n')[-2] == printed
