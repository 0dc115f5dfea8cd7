import json

import pytest

from s2wrap import BackboneOptions, ModelInput, Options, S2WrapError, Scale
from s2wrap.options import LoadOptions
from s2wrap.policies import nvila


def there_and_back(value):
    return type(value).from_json(json.loads(json.dumps(value.to_json(), allow_nan=False)))


OPTIONS = [
    Options(),
    Options((1, "2", "448px:pad:tiled", Scale(1.5, policy="nvila", max_tiles=7)), fit="aspect", policy="closest"),
    Options((1, 2), fuse="weighted", weights=(0.25, 0.1), norm="l2", target_grid=(12, 7), tile_batch=3, overlap=2),
    Options((1, 3), fuse="detail", target_grid=-1, prefix="drop", whole=True, blend="gaussian", frozen=False),
    Options((1, 2), fuse="pyramid", join_layers=False, whole=False),
    BackboneOptions(),
    BackboneOptions(image_size=(224, 160), in_channels=4, mean=(0.1,) * 4, std=(0.3,) * 4, value_range=(0, 255)),
    BackboneOptions(output="last_hidden_state", layout="bhwc", grid=(3, 4), patch_size=(14.5, 7), layers=(-4, -1)),
    BackboneOptions(output=1, name="é“x”", interpolation="bilinear", num_prefix_tokens=0, patch_size=8),
    LoadOptions(pretrained=False, checkpoint="weights.safetensors", image_size=64),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_options_come_back_from_json_equal(options):
    assert there_and_back(options) == options


def test_a_policy_of_s2wrap_given_as_a_function_is_kept_by_its_name():
    assert there_and_back(Options((1, 2), fit="aspect", policy=nvila)).policy == "nvila"


@pytest.mark.parametrize("where", ["options", "scale"])
def test_a_function_of_the_callers_is_refused_by_name(where):
    def my_policy(image_hw, tile_hw, least, most):
        return 1, 1

    options = Options((1, 2), fit="aspect", policy=my_policy)
    if where == "scale":
        options = Options((1, Scale(2, fit="aspect", policy=my_policy)))
    with pytest.raises(S2WrapError, match="my_policy"):
        options.to_json()


def test_an_output_that_json_cannot_keep_is_refused():
    with pytest.raises(S2WrapError, match="output="):
        BackboneOptions(output=object()).to_json()


def test_names_that_are_no_options_are_refused():
    with pytest.raises(S2WrapError, match="scalez"):
        Options.from_json({"scalez": [1]})


@pytest.mark.parametrize(
    "known",
    [
        ModelInput(3, (224, 224)),
        ModelInput(
            4,
            (32, 64),
            (0.1, 0.2, 1 / 3, 0.4),
            (0.5,) * 4,
            (0.0, 255.0),
            "bilinear",
            "RGB",
            {"mean": "processor", "std": "caller"},
        ),
    ],
)
def test_a_models_input_comes_back_from_json_equal(known):
    assert there_and_back(known) == known
