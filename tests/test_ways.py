import pytest

from s2wrap.compare.ways import LARGER, PATCH, PLAIN, SCALES, SMALLER, way_of, weights_of


@pytest.mark.parametrize(
    ("spec", "way"),
    [
        ("sample:dinov2_s14", PLAIN),
        ("sample:dinov2_s14@1", PLAIN),
        ("sample:dinov2_s14@1:aspect", PLAIN),
        ("sample:dinov2_s14@1,2", SCALES),
        ("sample:dinov2_s14:size=448@1,2", SCALES),
        ("sample:dinov2_s14@2:whole", LARGER),
        ("sample:dinov2_s14@448px", LARGER),
        ("sample:dinov2_s14@0.5", SMALLER),
        ("sample:dinov2_s14:size=448@1", LARGER),
        ("sample:dinov2_s14:patch=7@1", PATCH),
    ],
)
def test_a_spec_tells_the_way(spec, way):
    assert way_of(spec) == way
    assert weights_of(spec) == "sample:dinov2_s14"
