"""Names of the trained models inside the package."""

from __future__ import annotations

from spt_parlai import trained_models


def find_models_by_name() -> None:
    """Let `-mf spt:NAME` and `-mf hf:OWNER/NAME`, and every other path of a model, stand for a trained model.

    Breaks: there would be no such file; ParlAI knows names of its own zoo only, which it downloads.
    Where: ``modelzoo_path``, ``parlai/core/build_data.py:482``, which `params`, `agents` and `dict` import by name.
    Safe: only names that begin with `spt:` or `hf:` are looked up.
    Goes: when ParlAI lets packages register a zoo.
    """
    from parlai.core import agents, build_data, params
    from parlai.core import dict as dictionaries

    parlai_modelzoo_path = build_data.modelzoo_path

    def modelzoo_path(datapath, path):
        if path and trained_models.is_name(str(path)):
            name = str(path).removesuffix('.dict')  # ParlAI asks for the dictionary, NAME.dict, too
            return trained_models.resolve(name) + str(path).removeprefix(name)
        return parlai_modelzoo_path(datapath, path)

    for module in (build_data, agents, dictionaries, params):
        module.modelzoo_path = modelzoo_path
