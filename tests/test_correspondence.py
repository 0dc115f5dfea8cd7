import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from PIL import Image

from s2wrap import S2WrapError
from s2wrap.compare import compare
from s2wrap.compare.tasks import correspondence as module
from s2wrap.compare.tasks.correspondence import correspondence, query
from s2wrap.compare.tasks.stability import stability
from s2wrap.compare.warps import Warp, draw_warps, move

IDENTITY = torch.eye(3, dtype=torch.float64)


def shift(down, across):
    homography = IDENTITY.clone()
    homography[:2, 2] = torch.tensor([down, across], dtype=torch.float64)
    return homography


def scored(map_a, map_b, homography, **options):
    figures = correspondence(map_a[None], map_b[None], homography[None], **options)
    return {name: float(values[0]) for name, values in figures.items()}


def unique(h, w, channels=16, seed=0):
    """A map whose tokens are all different: each is most alike itself."""
    return torch.randn(channels, h, w, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("hw", [(48, 48), (16, 16), (20, 31), (70, 50)])
def test_the_same_picture_is_found_where_it_is(hw):
    figures = scored(unique(*hw), unique(*hw), IDENTITY, side=672)
    assert figures == {**{f"matches@{each:g}": 1.0 for each in (1.5, 0.5, 0.75, 3)}, "match error": 0.0}


def test_a_shift_by_one_cell_is_found_and_one_that_was_not_made_is_an_error_of_one_cell():
    content = unique(48, 49)
    before, after = content[:, :, 1:], content[:, :, :-1]  # what was at column j is at column j + 1
    assert scored(before, after, shift(0, 1 / 48))["matches@0.5"] == 1
    figures = scored(before, after, IDENTITY, side=480)
    assert figures["match error"] == pytest.approx(10)
    assert (figures["matches@0.75"], figures["matches@1.5"]) == (0, 1)


def test_the_figures_are_those_of_a_plain_loop():
    grid = 12
    map_a, map_b = unique(9, 14), unique(11, 8, seed=1)
    warp = draw_warps("hard", 1, "5")[0]
    distances = []
    for row in range(grid):
        for column in range(grid):
            point = np.array([(row + 0.5) / grid, (column + 0.5) / grid])
            down, across, scale = warp.homography.numpy() @ [*point, 1]
            if not all(2 / grid <= each / scale <= 1 - 2 / grid for each in (down, across)):
                continue
            own = np.array([[(i + 0.5) / 9, (j + 0.5) / 14] for i in range(9) for j in range(14)])
            start = int((((own - point) * [9, 14]) ** 2).max(axis=1).argmin())
            token = map_a.reshape(16, -1)[:, start]
            best = max(range(88), key=lambda i: float(F.cosine_similarity(token, map_b.reshape(16, -1)[:, i], dim=0)))
            found = np.array([(best // 8 + 0.5) / 11, (best % 8 + 0.5) / 8])
            down, across, scale = warp.homography.numpy() @ [*own[start], 1]
            distances.append(np.linalg.norm(found - [down / scale, across / scale]))
    figures = scored(map_a, map_b, warp.homography, grid=grid)
    assert figures["match error"] == pytest.approx(np.mean(distances))
    for cells in (0.5, 0.75, 1.5, 3):
        assert figures[f"matches@{cells:g}"] == pytest.approx(np.mean(np.array(distances) <= cells / grid))
    assert 0 < figures["matches@3"] < 1


def test_a_warp_of_coordinates_is_found_to_within_half_a_cell_of_the_models_grid():
    """Features that say exactly what place of the picture a cell shows, on a grid finer and coarser than the common."""
    for cells in (24, 60):
        for warp in draw_warps("medium", 3, "7"):
            places = module.centres((cells, cells))
            shown = move(warp.homography.inverse(), places)

            def features(points, cells=cells):
                angles = torch.cat([points, points * 1.7], dim=1) * 1.5  # far less than a turn: all are different
                waves = torch.cat([angles.sin(), angles.cos()], dim=1)
                return waves.T.reshape(-1, cells, cells).float()

            figures = scored(features(places), features(shown), warp.homography, side=48)
            assert figures["match error"] < 48 / cells * 0.75
            wrong = scored(features(places), features(shown), shift(0.2, 0) @ warp.homography, side=48)
            assert wrong["match error"] == pytest.approx(0.2 * 48, abs=48 / cells)


def test_lengths_of_tokens_do_not_count_and_chunks_change_nothing(monkeypatch):
    map_a, map_b = unique(20, 20), unique(20, 20, seed=1) + 0.5 * unique(20, 20)
    before = scored(map_a, map_b, IDENTITY)
    monkeypatch.setattr(module, "CHUNK", 7)
    assert scored(3 * map_a, map_b * torch.rand(1, 20, 20).add(0.1), IDENTITY) == before


def test_points_that_leave_the_picture_are_left_out():
    asked = query(unique(48, 48), unique(48, 48), shift(0.5, 0))
    assert len(asked.tokens) == (48 // 2 - 2) * (48 - 4)
    with pytest.raises(S2WrapError, match="moves every point out"):
        query(unique(8, 8), unique(8, 8), shift(2, 0))
    with pytest.raises(S2WrapError, match="of as many channels"):
        query(unique(8, 8), unique(8, 8, channels=3), IDENTITY)


def test_stability_is_one_for_the_same_content_and_falls_with_noise():
    content = unique(48, 52)
    first, moved = content[:, :, :48], content[:, :, 3:51]  # a window that lies three cells further to the right
    shifts = torch.tensor([[0.0, 3 / 48]], dtype=torch.float64)
    assert {name: float(value) for name, value in stability(first, moved[None], shifts).items()} == {
        "stable": 1.0,
        "shift cosine": pytest.approx(1, abs=1e-6),
    }
    noisy = stability(first, (moved + 2 * unique(48, 48, seed=1))[None], shifts)
    assert noisy["stable"] < 0.9
    kept, found = first[:, 2:46, 5:48].flatten(1), (moved + 2 * unique(48, 48, seed=1))[:, 2:46, 2:45].flatten(1)
    assert float(noisy["shift cosine"]) == pytest.approx(
        float(F.cosine_similarity(kept, found, dim=0).mean()), abs=1e-5
    )


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("plain"), np.random.default_rng(0)
    for number in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize((200, 180), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def test_plain_pictures_are_matched_and_shifted_and_nothing_is_computed_twice(photographs, tmp_path, monkeypatch):
    specs, options = ["timm:test_vit@1", "timm:test_vit@1,2"], {"pretrained": False, "backends": ()}
    torch.manual_seed(0)
    found = compare(specs, data=photographs, cache=tmp_path, **options)
    assert list(found.tasks) == ["correspondence", "stability"]
    assert found.deciding == ["matches@1.5", "stable"]
    for row in found.rows:
        assert 0 < row.scores["matches@0.5"].value <= row.scores["matches@1.5"].value <= row.scores["matches@3"].value
        assert row.scores["matches@1.5"].pictures == 4
        assert 0 < row.scores["match error"].value < 320
        assert 0.3 < row.scores["shift cosine"].value <= 1
    kept = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert kept < 100_000  # figures, not maps
    monkeypatch.setattr(module, "maps_of_values", lambda *_: pytest.fail("computed again"))
    again = compare(specs, data=photographs, cache=tmp_path, tasks=["correspondence"], **options)
    assert list(again.tasks) == ["correspondence"]
    for one, other in zip(found.rows, again.rows, strict=True):
        assert one.scores["matches@1.5"].value == other.scores["matches@1.5"].value


def test_a_model_that_returns_several_maps_is_unable_and_says_why(photographs):
    found = compare(["timm:test_vit@1,2"], data=photographs, cache=False, fuse="pyramid", pretrained=False, backends=())
    (row,) = found.rows
    assert set(row.unable) == {"correspondence", "stability"}
    assert "2 maps a picture" in row.unable["stability"]
    assert row.scores == {}


def test_light_alone_moves_nothing():
    image = torch.rand(1, 3, 48, 48)
    lit = Warp(IDENTITY, contrast=0.9, brightness=0.05)(image)
    assert scored(image[0] - 0.5, lit[0] - 0.55, IDENTITY)["match error"] < 0.2
