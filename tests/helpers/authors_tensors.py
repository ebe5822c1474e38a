"""The tensors in a checkpoint of the authors' code."""

import torch

K, L, D = 3, 2, 16
PROMPT = 'models.{}.prompt_encoder.default.embedding.weight'


def make_tensors(dtype=torch.float32, K=K, L=L, D=D):
    """Name → tensor of everything that the authors' model trains; the same values at every call."""
    generator = torch.Generator().manual_seed(K * 100 + L)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    tensors = {PROMPT.format(i): draw(L, D) for i in range(K)}
    return {**tensors, 'prompt_normalizer.weight': draw(D, D), 'prompt_normalizer.bias': draw(D)}
