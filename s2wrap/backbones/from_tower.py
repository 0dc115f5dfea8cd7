"""The vision tower of a multimodal model of transformers, with the states that the model reads of it as layers."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from s2wrap.backbones.from_transformers import TransformersBackbone
from s2wrap.backbones.probed import NO_OPTIONS
from s2wrap.errors import S2WrapError, first_line
from s2wrap.features import Features
from s2wrap.options import BackboneOptions


class TowerBackbone(TransformersBackbone):
    """A vision tower whose layers are its `last_hidden_state` and then some of its `hidden_states`, as it gives them.

    Args:
        tower: takes images alone.
        places: indices of `hidden_states`, as the multimodal model asks for them; negative ones from the end.
        options: what is known of the tower.

    Attributes:
        places: the same, all from the start.
        num_states: how many hidden states the tower has; 0 if none was asked for.

    Raises:
        S2WrapError: the tower takes more than images, fails on an image, or has no such state.
    """

    def __init__(self, tower: Any, places: Sequence[int] = (), options: BackboneOptions = NO_OPTIONS):
        self.places: tuple[int, ...] = ()
        try:
            super().__init__(tower, options)
            if self.patches is not None:
                raise S2WrapError("it takes patches of images of any shape (NaFlex), and no images")
            if places:
                self._find_states(places)
        except S2WrapError:
            raise
        except Exception as error:  # whatever a tower raises that cannot look at one image
            raise S2WrapError(f"{type(tower).__name__} failed on an image alone: {first_line(error)}") from error
        self.layouts = (self.layout,) * (1 + len(self.places))
        if self.places:
            self.layers = tuple(place - 1 for place in self.places)  # the first hidden state is before all blocks

    num_states: int = 0

    def _find_states(self, places: Sequence[int]) -> None:
        """Check which hidden states there are, and that they lie as the last one does."""
        with self.evaluating():
            states = self._answer_of(self._black_tile(), output_hidden_states=True).hidden_states
        self.num_states = len(states or ())
        if not all(-self.num_states <= place < self.num_states for place in places):
            raise S2WrapError(
                f"hidden_states{list(places)} are read of {self.name}, which has {self.num_states} of them"
            )
        self.places = tuple(place % self.num_states for place in places)

    def call(self, tiles: Tensor) -> Any:
        """The last hidden state: (b, n, c) or (b, c, h, w)."""
        return _of_each(self._answer_of(tiles).last_hidden_state, tiles)

    def forward(self, tiles: Tensor) -> Features:
        """Maps (b, c, rows, columns) and prefix tokens (b, p, c): of the last hidden state, and of each of `places`."""
        tile_hw = (tiles.shape[-2], tiles.shape[-1])
        parts = self._around(self._states, tiles)
        features = [self._read(state, tile_hw, self.grid_hw(tile_hw)) for state in parts]
        return Features(
            tuple(part.spatial for part in features),
            tuple(part.prefix for part in features),
        )

    def _states(self, tiles: Tensor) -> list[Tensor]:
        if not self.places:
            return [self.call(tiles)]
        answer = self._answer_of(tiles, output_hidden_states=True)
        states = [answer.last_hidden_state, *(answer.hidden_states[place] for place in self.places)]
        return [_of_each(state, tiles) for state in states]

    def _answer_of(self, tiles: Tensor, **options: Any) -> Any:
        if hasattr(self.model, "timm_model"):
            options["do_pooling"] = False
        return self._run(tiles, **options)


def _of_each(state: Tensor, tiles: Tensor) -> Tensor:
    """A state with one sequence an image: Pixtral answers with one of all images."""
    if state.ndim == 3 and len(state) == 1:
        return state.reshape(len(tiles), -1, state.shape[-1])
    return state
