"""Give freed memory back to the system."""

from __future__ import annotations

import ctypes
import sys


def return_freed_memory() -> None:
    """Let glibc return freed memory to the system, which it keeps otherwise; elsewhere nothing happens.

    Tensors that grow from batch to batch leave holes that are always a little too small for the next ones: without
    this, 16 candidates around a 135 M LM held 15 GB after 20 batches instead of 3.
    """
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None) if sys.platform == 'linux' else None
    if trim is not None:
        trim(0)
