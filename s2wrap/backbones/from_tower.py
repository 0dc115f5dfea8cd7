"""The vision tower of a multimodal model of transformers, with the states that the model reads of it as layers."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from s2wrap.backbones.from_transformers import image_size_of, tower_facts
from s2wrap.backbones.vision_tower import InterpolatingBackbone, parameters
from s2wrap.errors import S2WrapError, first_line
from s2wrap.features import Features
from s2wrap.options import BackboneOptions


class TowerBackbone(InterpolatingBackbone):
    """A vision tower whose layers are its `last_hidden_state` and then some of its `hidden_states`, as it gives them.

    Args:
        tower: takes images alone.
        places: indices of `hidden_states`, as the multimodal model asks for them; negative ones from the end.
        image_size: in pixels, if the tower's config says none.

    Attributes:
        kind: of model, as transformers calls it.
        places: as given, counted from the start.
        num_states: how many hidden states the tower has; 0 if none was asked for.

    Raises:
        S2WrapError: the tower takes more than images, fails on an image, or has no such state.
    """

    def __init__(self, tower: Any, places: Sequence[int] = (), image_size: Any = None):
        self.kind: str = tower.config.model_type
        takes = parameters(tower)
        self.pools = "do_pooling" in takes  # a model of timm
        if needed := _needed(takes.values()):
            raise S2WrapError(
                f"{type(tower).__name__} takes no images alone: it needs {', '.join(needed)} too. It looks at images "
                f"of other sizes itself: give it larger ones, by the sizes of its image processor (max_pixels, say)"
            )
        if image_size is None and image_size_of(tower.config) is None:
            raise S2WrapError(
                f"the config of {type(tower).__name__} says no image size; give the size in pixels of the images that "
                f"the model was trained with: image_size=768, say"
            )
        self.places: tuple[int, ...] = ()
        self.num_states = 0
        try:
            options = BackboneOptions(image_size=image_size)
            facts, origins = tower_facts(tower, options, None)
            super().__init__(tower, options, facts=facts, origins=origins)
            if places:
                self._find_states(places)
        except Exception as error:  # whatever a tower raises that cannot look at one image
            reason = first_line(error.__cause__ or error).partition(";")[0]
            raise S2WrapError(
                f"{type(tower).__name__} does not answer an image with one grid of tokens: {reason}"
            ) from error
        self.layouts = (self.layout,) * (1 + len(self.places))

    def _find_states(self, places: Sequence[int]) -> None:
        """Check that the tower has these hidden states."""
        with self.evaluating():
            states = self._around(lambda tiles: self._run(tiles, output_hidden_states=True), self._black_tile())
        self.num_states = len(states.hidden_states or ())
        if not all(-self.num_states <= place < self.num_states for place in places):
            raise S2WrapError(
                f"the model reads hidden_states{list(places)} of {self.name}, which has {self.num_states} of them"
            )
        self.places = tuple(dict.fromkeys(place % self.num_states for place in places))
        self.layers = tuple(place - 1 for place in self.places)  # the first hidden state is before all blocks

    def call(self, tiles: Tensor) -> Tensor:
        """The last hidden state: (b, n, c), (b, c, h, w) or (b, h, w, c)."""
        return _of_each(self._run(tiles).last_hidden_state, tiles)

    def forward(self, tiles: Tensor) -> Features:
        """Maps (b, c, rows, columns) and prefix tokens (b, p, c): of the last hidden state, and of each of `places`."""
        tile_hw = (tiles.shape[-2], tiles.shape[-1])
        states = self._around(self._states, tiles)
        parts = [self._read(state, tile_hw, self.grid_hw(tile_hw)) for state in states]
        return Features(tuple(part.spatial for part in parts), tuple(part.prefix for part in parts))

    def _states(self, tiles: Tensor) -> list[Tensor]:
        if not self.places:
            return [self.call(tiles)]
        answer = self._run(tiles, output_hidden_states=True)
        states = [answer.last_hidden_state, *(answer.hidden_states[place] for place in self.places)]
        return [_of_each(state, tiles) for state in states]

    def _run(self, tiles: Tensor, **options: object) -> Any:
        """The answer of the tower; its first argument are the images, whatever it is called."""
        if self.pools:
            options["do_pooling"] = False  # its features alone
        return self.model(tiles, return_dict=True, **self.size_options, **options)


def _needed(parameters: Any) -> list[str]:
    """What a forward needs besides its first argument."""
    return [
        each.name
        for each in list(parameters)[1:]
        if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    ]


def _of_each(state: Tensor, tiles: Tensor) -> Tensor:
    """A state with one sequence an image: Pixtral answers with one of all images."""
    if state.ndim == 3 and len(state) == 1:
        return state.reshape(len(tiles), -1, state.shape[-1])
    return state
