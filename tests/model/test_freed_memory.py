"""Freed memory that glibc would keep goes back to the system."""

import ctypes

import psutil
import pytest
import torch

from spt_parlai.model.freed_memory import return_freed_memory


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), 'malloc_trim'), reason='only glibc keeps freed memory so')
def test_freed_memory_goes_back_to_the_system():
    def resident():
        return psutil.Process().memory_info().rss

    before = resident()
    tensors = [torch.ones(2**14) for _ in range(4000)]  # 64 KiB each, 250 MiB
    held, last = resident() - before, tensors.pop()  # what was allocated last keeps the heap from shrinking by itself
    tensors.clear()
    kept = resident() - before
    return_freed_memory()
    assert resident() - before < held / 2 < kept
    assert last.sum() == 2**14
