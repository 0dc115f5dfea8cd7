"""A wrapped model in a folder: its weights as safetensors, and `s2wrap.json`, which says how it is made again.

Nothing is pickled. A description of a backbone is proved before it is written: the backbone is made by it, takes the
weights, and must compute the same features. Loading checks the same.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from s2wrap.backbones.base import Backbone
from s2wrap.backbones.registry import FAMILIES, as_backbone, load_backbone, parse_spec
from s2wrap.errors import S2WrapError, first_line
from s2wrap.files import check_free, file_sha256, whole_folder
from s2wrap.fingerprint import changed_versions, compare_samples, library_versions, sample_features
from s2wrap.inputs import ModelInput
from s2wrap.options import BackboneOptions, LoadOptions, Options, make_options, part_of
from s2wrap.weights import Weights
from s2wrap.wrapper import MultiScale

FORMAT = 1
DESCRIPTION, WEIGHTS = "s2wrap.json", "weights.safetensors"


@dataclass(frozen=True)
class _Saved:
    """What `s2wrap.json` says.

    Attributes:
        backbone: its name, class and options; how it is made again: `made_by` and `description`, None if the caller
            must give it.
        options: of the wrapped model.
        input: what it takes.
        weights_sha256: of the file beside it.
        features: what the backbone computes of a fixed image.
        versions: of the libraries.
    """

    backbone: dict[str, Any]
    options: Options
    input: ModelInput
    weights_sha256: str
    features: list[dict[str, Any]]
    versions: dict[str, str | None]

    def to_json(self) -> dict[str, Any]:
        """As `s2wrap.json` holds it."""
        written = {"options": self.options.to_json(), "input": self.input.to_json()}
        return {"format": FORMAT} | {key: written.get(key, value) for key, value in vars(self).items()}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "_Saved":
        """What `to_json` wrote."""
        read = {"options": Options.from_json(saved["options"]), "input": ModelInput.from_json(saved["input"])}
        return cls(**{key: read.get(key, value) for key, value in saved.items() if key != "format"})


def save(model: MultiScale, folder: str | Path, *, overwrite: bool = False, rebuild: bool = True) -> None:
    """Write a wrapped model into a folder, whole or not at all; see `MultiScale.save`."""
    folder, backbone = Path(folder), model.backbone
    if not (overwrite and _is_saved_model(folder)):
        check_free(folder)
    weights = Weights.of(backbone)
    saved = _Saved(
        backbone={
            "name": backbone.name,
            "class": type(getattr(backbone, "model", backbone)).__name__,
            "options": backbone.options.to_json(),
            "made_by": None,
            "description": None,
        },
        options=model.options,
        input=model.input,
        weights_sha256="",
        features=sample_features(backbone),
        versions=library_versions(backbone),
    )
    saved.to_json()  # a policy of the caller's is refused before the work
    if rebuild:
        saved = replace(saved, backbone=_proved_description(model, saved, weights))
    with whole_folder(folder, replace=overwrite) as draft:
        weights.write(draft / WEIGHTS)
        saved = replace(saved, weights_sha256=file_sha256(draft / WEIGHTS))
        text = json.dumps(saved.to_json(), indent=2, ensure_ascii=False)
        (draft / DESCRIPTION).write_text(text, encoding="utf-8")


def load_saved(folder: str | Path, backbone: object = None) -> MultiScale:
    """The model that `MultiScale.save` wrote, on the CPU, in the precision that it had.

    Args:
        folder: of the saved model.
        backbone: a model that takes the weights instead of one made anew, as it would be given to `wrap`. It is
            changed: it gets the weights, in their precision.

    Raises:
        MissingExtraError: the library that made the backbone is not installed.
        S2WrapError: the folder is no saved model, incomplete, damaged or of a newer format; the library is missing or
            makes another backbone today; the weights do not fit the model, or it computes other features.
    """
    folder = Path(folder)
    saved = _read(folder)
    model = _remake(saved, _read_weights(folder, saved), folder, backbone)
    if backbone is None:
        model.recipe = {"spec": str(folder.resolve())}
    return model


def _read(folder: Path) -> _Saved:
    """What `s2wrap.json` in a folder says."""
    file = folder / DESCRIPTION
    if not file.is_file():
        what = "there is no such folder" if not folder.is_dir() else f"it has no {DESCRIPTION}"
        raise S2WrapError(f"{folder} is no saved model: {what}; model.save(folder) writes one")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        newer = content["format"] > FORMAT
        if not newer:
            return _Saved.from_json(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise S2WrapError(
            f"{file} is damaged, or none of s2wrap ({first_line(error)}); save the model again"
        ) from error
    raise S2WrapError(
        f"{file} has format {content['format']}, and this s2wrap reads formats up to {FORMAT}; install a newer one: "
        f"pip install -U s2wrap"
    )


def _read_weights(folder: Path, saved: _Saved) -> Weights:
    """The weights of a saved model, once the file is the one that was written."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise S2WrapError(f"{folder} is incomplete: {WEIGHTS} is missing; copy the whole folder, or save again")
    if file_sha256(file) != saved.weights_sha256:
        raise S2WrapError(
            f"{file} is damaged, or of another model: its SHA-256 is not the one in {DESCRIPTION}; copy the whole "
            f"folder, or save again"
        )
    return Weights.read(file)


def _remake(saved: _Saved, weights: Weights, where: object, given: object = None) -> MultiScale:
    """The model that a description and weights make; S2WrapError unless it computes the saved features."""
    name = saved.backbone["name"]
    with torch.random.fork_rng(devices=[]):  # the random weights of a new model are replaced
        backbone = _make_backbone(saved, where) if given is None else _given_backbone(saved, given)
    found, known = backbone.input, saved.input
    if (found.channels, found.image_hw) != (known.channels, known.image_hw):
        raise S2WrapError(
            f"the backbone takes {found.channels} channels and {found.image_hw[0]}×{found.image_hw[1]} pixels, but "
            f"{name} in {where} {known.channels} and {known.image_hw[0]}×{known.image_hw[1]}"
        )
    backbone.input = known
    if not isinstance(given, Backbone):
        backbone.options = BackboneOptions.from_json(saved.backbone["options"])
    weights.put_into(backbone, where)
    model = MultiScale(backbone, saved.options)
    if difference := compare_samples(saved.features, sample_features(backbone), backbone.dtype):
        raise S2WrapError(
            f"the backbone in {where} computes other features than {name} did when it was saved: {difference}; "
            f"{changed_versions(saved.versions, library_versions(backbone))}"
        )
    return model


def _make_backbone(saved: _Saved, where: object) -> Backbone:
    """The backbone that a description makes, with random weights."""
    made_by, description = saved.backbone["made_by"], saved.backbone["description"]
    give = "give a model that takes the weights: s2wrap.load(folder, backbone=my_model)"
    if made_by is None:
        raise S2WrapError(
            f"{where} was saved with rebuild=False, without how its {saved.backbone['class']} is made; {give}"
        )
    try:
        if made_by == "load":
            options = BackboneOptions.from_json(description["options"])
            return load_backbone(parse_spec(description["spec"]), options, pretrained=False)
        family = FAMILIES[made_by]
        assert family.rebuild is not None
        return family.adapt(family.rebuild(description), _backbone_options(saved))
    except S2WrapError:
        raise
    except ImportError as error:
        raise S2WrapError(f"{where} needs {made_by}, which is not installed ({first_line(error)})") from error
    except Exception as error:
        libraries = ", ".join(f"{library} {number}" for library, number in saved.versions.items())
        raise S2WrapError(
            f"{made_by} cannot make the backbone of {where} ({first_line(error)}), which was saved with {libraries}; "
            f"install these, or {give}"
        ) from error


def _given_backbone(saved: _Saved, given: object) -> Backbone:
    return given if isinstance(given, Backbone) else as_backbone(given, _backbone_options(saved))


def _backbone_options(saved: _Saved) -> BackboneOptions:
    """What was said of the backbone, with its size and channels, which a processor or its hub may have told."""
    options = BackboneOptions.from_json(saved.backbone["options"])
    return replace(options, image_size=saved.input.image_hw, in_channels=saved.input.channels)


def _proved_description(model: MultiScale, saved: _Saved, weights: Weights) -> dict[str, Any]:
    """What `s2wrap.json` says of the backbone, with a description that made one that computes the same."""
    reasons = []
    for made_by, description in _descriptions(model):
        about = saved.backbone | {"made_by": made_by, "description": description}
        try:
            read_back = _Saved.from_json(json.loads(json.dumps(replace(saved, backbone=about).to_json())))
            _remake(read_back, weights, "the copy")
        except Exception as error:  # whatever a library raises: another description may do
            reasons.append(f"as {made_by} would make it, {first_line(error)}")
        else:
            return about
    reason = "; ".join(reasons) or "its library says nothing of how it was built"
    raise S2WrapError(
        f"how to make {model.backbone.name} again cannot be told: {reason}. Use "
        f"save(folder, rebuild=False), and load it with s2wrap.load(folder, backbone=my_model)"
    )


def _descriptions(model: MultiScale) -> Iterator[tuple[str, dict[str, Any]]]:
    """How the backbone may be made again: as its library describes it, or by the spec that `load` was given."""
    for name, family in FAMILIES.items():
        if family.describe is not None and (description := family.describe(model.backbone)) is not None:
            yield name, description
    recipe = dict(model.recipe or {})
    spec = recipe.pop("spec", None)
    if spec is not None and Path(spec).is_dir():  # it was loaded from a folder
        about = _read(Path(spec)).backbone
        if about["made_by"] == "load":
            yield "load", about["description"]
    elif spec is not None:
        given = make_options(LoadOptions, "load()", recipe)
        yield "load", {"spec": spec, "options": part_of(BackboneOptions, given).to_json()}


def _is_saved_model(folder: Path) -> bool:
    """Whether a folder holds a saved model and nothing else."""
    return folder.is_dir() and {file.name for file in folder.iterdir()} == {DESCRIPTION, WEIGHTS}
