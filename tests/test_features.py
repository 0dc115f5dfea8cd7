import torch

from s2wrap import Features
from s2wrap.features import join


def test_tokens_are_the_map_row_by_row_and_pooled_is_its_mean():
    spatial = torch.arange(24.0).reshape(1, 2, 3, 4)
    features = Features((spatial,), (torch.zeros(1, 0, 2),))
    assert features.tokens.shape == (1, 12, 2)
    assert features.tokens[0, 5].tolist() == spatial[0, :, 1, 1].tolist()
    assert features.pooled.tolist() == [[5.5, 17.5]]
    assert features.prefix.shape == (1, 0, 2)


def test_split_undoes_join():
    maps, prefixes, ran = torch.randn(3, 2, 4, 5), torch.randn(3, 1, 2), torch.rand(3, 2, 2) > 0.5
    features = Features((maps, maps[:, :, :2]), (prefixes, prefixes), ran=(ran,))
    parts = features.split()
    assert [part.maps[0].shape for part in parts] == [(1, 2, 4, 5)] * 3
    again = join(parts)
    for ours, theirs in zip(
        (*again.maps, *again.prefixes, *again.ran), (*features.maps, *features.prefixes, ran), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert Features((maps,), (prefixes,)).split()[1].ran is None
