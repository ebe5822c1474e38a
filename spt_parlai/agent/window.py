"""How the LLM's window is shared between the soft prompt, the context and the target."""

from __future__ import annotations

from spt_parlai.errors import UsageError

DEFAULT_TARGET = 128  # tokens kept free for the target; ConvAI2's longest has about 40
SMALLEST_CONTEXT = 8
UNBOUNDED = 2048  # LLMs without position limit (ALiBi)
_WINDOW_KEYS = ('max_position_embeddings', 'n_positions', 'n_ctx', 'max_seq_len', 'seq_length')


def window_size(config) -> int:
    """The longest sequence the LLM was built for, in tokens."""
    for key in _WINDOW_KEYS:
        value = getattr(config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return UNBOUNDED


def share_window(
    window: int, prompt_length: int, text_truncate: int | None, label_truncate: int | None, max_new_tokens: int
) -> tuple[int, int]:
    """(longest context, longest target) in tokens; None or -1 asks for as much as fits.

    :raises UsageError: where the soft prompt, the context and the target cannot fit the window together.
    """
    if label_truncate is None or label_truncate < 0:
        label_truncate = max(min(DEFAULT_TARGET, window // 4), 2)
    if label_truncate < 2:
        raise UsageError(
            f'--label-truncate {label_truncate} leaves nothing of a target but its end: give at least 2, or -1.'
        )
    target = max(label_truncate, max_new_tokens)
    room = window - prompt_length - target
    if room < SMALLEST_CONTEXT:
        raise UsageError(
            f"the LLM's window of {window} tokens leaves {max(room, 0)} for the context after --prompt-length {prompt_length} "
            f'and {target} tokens of target (--label-truncate, --max-new-tokens): make these smaller.'
        )
    if text_truncate is None or text_truncate < 0:
        text_truncate = room
    if not SMALLEST_CONTEXT <= text_truncate <= room:
        raise UsageError(
            f"--text-truncate {text_truncate} (or --truncate): the LLM's window of {window} tokens has room for {SMALLEST_CONTEXT} to {room} "
            'tokens of context beside the soft prompt and the target; give -1 for as many as fit.'
        )
    return text_truncate, label_truncate
