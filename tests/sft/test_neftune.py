"""Noise on embeddings: as large as the paper says, in training only, and not what is packed beside decides."""

import torch

from sft.model import PackedCausalLM, embedding_noise
from sft.sequence import SequenceGroup
from tests.sft.models import tiny_llama

BORDERS = torch.tensor([0, 4, 104], dtype=torch.int32)


def test_its_bound_is_that_of_each_document() -> None:
    torch.manual_seed(0)
    noise = embedding_noise(torch.zeros(1, 104, 64), BORDERS, 5.0)[0]
    for part, length in ((noise[:4], 4), (noise[4:], 100)):
        most = 5.0 / (length * 64) ** 0.5
        assert 0.95 * most < float(part.abs().max()) <= most * (1 + 1e-6)
        assert abs(float(part.mean())) < 0.15 * most  # uniform on both sides
    parts = [
        embedding_noise(torch.zeros(1, 52, 64), BORDERS, 5.0, SequenceGroup(rank, 2, 0, 1, None))[0] for rank in (0, 1)
    ]
    assert parts[0][:4].abs().max() > 2 * parts[0][4:].abs().max() > parts[1].abs().max()


def test_it_is_made_in_training_only_and_the_same_again_from_the_same_state() -> None:
    ids, positions = torch.arange(104)[None], torch.cat([torch.arange(4), torch.arange(100)])[None]
    model = tiny_llama(tied=True)
    plain = PackedCausalLM(model).hidden(ids, positions, BORDERS, 100)
    packed = PackedCausalLM(model, neftune_alpha=5.0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = (packed.train().hidden(ids, positions, BORDERS, 100) for _ in range(2))
    torch.set_rng_state(state)
    again = packed.hidden(ids, positions, BORDERS, 100)
    assert torch.equal(first, again)
    assert not torch.equal(first, second) and not torch.equal(first, plain)
    assert torch.equal(packed.eval().hidden(ids, positions, BORDERS, 100), plain)
