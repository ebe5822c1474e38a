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


@pytest.mark.parametrize('begun', ['', 'sys.stdin.read(1); '], ids=['unread', 'read'])
def test_bytes_that_are_no_text_are_replaced(begun):
    """Unless something has been read before, which cannot be changed any more."""
    run = subprocess.run(
        [sys.executable, '-c', f'import sys; {begun}import spt_parlai; print(ascii(input()))'],
        input=b' ' * bool(begun) + (b'caf\xc3\xa9' if begun else b'caf\xe9') + b'\n',
        env={**os.environ, 'PYTHONIOENCODING': 'utf-8'},
        capture_output=True,
        check=True,
    )
    assert run.stdout.split() == [rb"'caf\xe9'" if begun else rb"'caf\ufffd'"]
