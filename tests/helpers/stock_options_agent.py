"""An SptAgent that takes a stock generator's options: ParlAI's own tests configure a transformer, a frozen LLM has its sizes."""

from parlai.core.dict import DictionaryAgent

from spt_parlai.agents import SptAgent

STOCK_OPTIONS = {
    'n_layers': 2,
    'n_heads': 2,
    'embedding_size': 300,
    'ffn_size': 300,
    'n_positions': None,
    'dropout': 0.0,
    'attention_dropout': 0.0,
    'relu_dropout': 0.0,
    'variant': 'aiayn',
    'activation': 'relu',
    'n_segments': 0,
    'n_encoder_layers': -1,
    'n_decoder_layers': -1,
    'learn_positional_embeddings': False,
    'embeddings_scale': True,
    'share_word_embeddings': True,
    'numthreads': 1,
}


class StockOptionsAgent(SptAgent):
    """Accepts a transformer's sizes and does nothing with them."""

    @classmethod
    def add_cmdline_args(cls, parser, partial_opt=None):
        super().add_cmdline_args(parser, partial_opt)
        DictionaryAgent.add_cmdline_args(parser, partial_opt)
        group = parser.add_argument_group('Sizes of a transformer that is not there')
        for name, default in STOCK_OPTIONS.items():
            group.add_argument(
                '--' + name.replace('_', '-'), default=default, type='bool' if isinstance(default, bool) else None
            )
        return parser

    def __init__(self, opt, shared=None):
        for name in [name for name in opt.get('override') or () if name.startswith('dict_')]:
            del opt['override'][name]
        super().__init__(opt, shared)
