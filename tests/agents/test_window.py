"""The LLM's window is shared out, or refused in a sentence that says what to make smaller."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_parlai.agents.batching import SMALLEST_CONTEXT, UNBOUNDED, share_window, window_size
from spt_parlai.errors import UsageError

quick = settings(max_examples=60, deadline=None)

MAYBE = st.none() | st.integers(-1, 300)


@pytest.mark.parametrize(
    'config, size',
    [
        ({'max_position_embeddings': 2048}, 2048),
        ({'n_positions': 1024}, 1024),
        ({'seq_length': 8192}, 8192),
        ({'max_position_embeddings': None, 'n_ctx': 512}, 512),
        ({}, UNBOUNDED),
        ({'max_seq_len': 0}, UNBOUNDED),
    ],
)
def test_reads_the_window_of_a_configuration(config, size):
    assert window_size(SimpleNamespace(**config)) == size


def test_gives_the_context_what_is_left():
    assert share_window(2048, 8, None, None, 32) == (2048 - 8 - 128, 128)
    assert share_window(2048, 8, -1, -1, 200) == (2048 - 8 - 200, 128)
    assert share_window(160, 2, 50, 20, 4) == (50, 20)


@quick
@given(st.integers(1, 400), st.integers(1, 100), MAYBE, MAYBE, st.integers(1, 200))
def test_parts_fit_or_are_refused(window, prompt_length, text, label, new):
    try:
        context, target = share_window(window, prompt_length, text, label, new)
    except UsageError as error:
        assert '--' in str(error) and str(error).endswith('.')
        return
    assert context >= SMALLEST_CONTEXT and target >= 2
    assert prompt_length + context + max(target, new) <= window
    assert text in (None, -1, context) and label in (None, -1, target)


@pytest.mark.parametrize(
    'arguments, named',
    [
        (
            (160, 150, None, None, 4),
            ['--prompt-length 150', 'window of 160', '--label-truncate', '--max-new-tokens', 'smaller'],
        ),
        ((160, 2, None, None, 160), ['160 tokens of target', '--max-new-tokens', 'smaller']),
        ((160, 2, 100_000, None, 4), ['--text-truncate 100000', 'window of 160', '8 to 118']),
        ((160, 2, 3, None, 4), ['--text-truncate 3', '8 to 118']),
        ((160, 2, None, 1, 4), ['--label-truncate 1', 'at least 2']),
    ],
)
def test_says_what_does_not_fit(arguments, named):
    with pytest.raises(UsageError) as error:
        share_window(*arguments)
    assert all(part in str(error.value) for part in named), error.value
