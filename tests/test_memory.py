import torch

from s2wrap.compare.memory import peak_bytes


def test_the_peak_is_what_lives_at_once():
    def run():
        kept = torch.empty(2**20, dtype=torch.uint8)
        for _ in range(3):
            torch.empty(2**19, dtype=torch.uint8)
        return kept

    assert 1.5 * 2**20 <= peak_bytes(run, torch.device("cpu")) < 1.6 * 2**20
