import torch

from s2wrap import Features


def test_tokens_are_the_map_row_by_row_and_pooled_is_its_mean():
    spatial = torch.arange(24.0).reshape(1, 2, 3, 4)
    features = Features((spatial,), (torch.zeros(1, 0, 2),))
    assert features.tokens.shape == (1, 12, 2)
    assert features.tokens[0, 5].tolist() == spatial[0, :, 1, 1].tolist()
    assert features.pooled.tolist() == [[5.5, 17.5]]
    assert features.prefix.shape == (1, 0, 2)
