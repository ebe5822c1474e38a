"""What cannot work is refused before anything is loaded, in one sentence that names the option and the value."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from spt_parlai.errors import UsageError, naming
from spt_parlai.metrics.bertscore import BertModel, best_layer, find_encoder
from spt_parlai.options.declare import Opt, OptionGroup


def check_options(opt: Opt, groups: Iterable[OptionGroup]) -> None:
    """Refuse what cannot work of an agent's own options, before anything is loaded.

    :param groups: the agent's options; those absent from `opt` pass.
    :raises UsageError: naming the option and the value.
    """
    for group in groups:
        group.check(opt)
    if opt.get('persona') is not None and opt.get('persona_file'):
        raise UsageError('--persona and --persona-file were both given: give one of them.')


def chosen_bert(opt: Opt) -> BertModel | None:
    """The model of `--bertscore`, or None without one. Raises UsageError where it cannot work."""
    name = opt.get('bertscore')
    if name in (None, 'none'):
        return None
    if not opt.get('paper_metrics', True):
        raise UsageError(
            f'--bertscore {name}: --paper-metrics false leaves out this metric, too; give only one of the two.'
        )
    with naming('--bertscore', name):
        source, layers = find_encoder(name)
    layer = opt.get('bertscore_layer')
    if layer is None:
        layer = best_layer(name)
    if layer is None:
        raise UsageError(f'--bertscore {name}: bert-score knows no best layer for it; give one with --bertscore-layer.')
    if not 1 <= layer <= layers:
        raise UsageError(f'--bertscore-layer {layer}: {name} has layers 1 to {layers}; give one of these.')
    return BertModel(source, layer, 'cuda' if torch.cuda.is_available() and not opt.get('no_cuda', False) else 'cpu')
