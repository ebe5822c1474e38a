"""Checkpoints as the authors' code writes them: a DeepSpeed folder with objects of classes that are not installed."""

import argparse
import sys
from types import ModuleType

import pytest
import torch
from helpers.authors_tensors import make_tensors


@pytest.fixture
def tensors():
    return make_tensors()


@pytest.fixture
def save_deepspeed(monkeypatch):
    """save(folder, tensors) → folder, laid out as `save_checkpoint(folder, tag='best')` does."""

    def save(folder, tensors, **more):
        with monkeypatch.context() as patch:
            module = ModuleType('deepspeed.runtime.fp16.loss_scaler')
            module.LossScaler = type('LossScaler', (), {'__module__': module.__name__})
            patch.setitem(sys.modules, 'deepspeed', ModuleType('deepspeed'))
            patch.setitem(sys.modules, module.__name__, module)
            scaler = module.LossScaler()
            scaler.cur_scale = 65536.0
            states = {
                'module': {'model.lm_head.weight': torch.zeros(50, 4), **tensors},
                'optimizer': {'loss_scaler': scaler},
                'args': argparse.Namespace(lr=0.01),
                'ds_version': '0.10.0',
                'param_shapes': [{'a': torch.Size([2])}],
                **more,
            }
            (folder / 'best').mkdir(parents=True)
            (folder / 'latest').write_text('best')
            torch.save(states, folder / 'best' / 'mp_rank_00_model_states.pt')
        return folder

    return save
