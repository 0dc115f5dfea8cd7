"""`Backbone`: what the wrapper asks of a model, whatever its library is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from s2wrap.backbones.probe import Layout
from s2wrap.backward import FeatureModule
from s2wrap.errors import S2WrapError
from s2wrap.features import Features
from s2wrap.inputs import ModelInput
from s2wrap.options import BackboneOptions
from s2wrap.policies import Pair


class Backbone(FeatureModule, ABC):
    """A model that turns images of one size into `Features`. `ProbedBackbone` makes one of any model.

    Attributes:
        name: for messages and manifests.
        input: what it takes; every tile has `input.image_hw` pixels.
        layouts: how its features lie, one a layer.
        layers: the blocks whose features are asked for; None for the last features.
        norm_layers: whether these go through the model's last norm; None for what its library does.
        options: what the caller said of it.
    """

    layers: tuple[int, ...] | None = None
    norm_layers: bool | None = None
    options = BackboneOptions()

    def __init__(self, name: str, model_input: ModelInput, layouts: tuple[Layout, ...]):
        super().__init__()
        self.name, self.input, self.layouts = name, model_input, layouts

    @abstractmethod
    def forward(self, tiles: Float[Tensor, "b c h w"]) -> Features:
        """Maps (b, c, rows, columns) and prefix tokens (b, p, c), one each a layer.

        Args:
            tiles: normalised images of `image_hw` pixels; others in whole strides, if `refuses_other_sizes` is empty.
        """

    def embed(self, tiles: Tensor) -> Tensor:
        """The image embeddings (b, d) that text is compared with. Families that have such a space override this."""
        raise S2WrapError(f"{self.name} has no embeddings that text is compared with; wrap a model of open_clip")

    @property
    def has_embeddings(self) -> bool:
        """Whether it has embeddings that text is compared with."""
        return type(self).embed is not Backbone.embed

    @property
    def lacks_cls(self) -> str:
        """Why its first prefix token is no CLS token; empty if it is."""
        has_prefix = all(layout.num_prefix_tokens for layout in self.layouts)
        return "" if has_prefix else f"{self.name} has no prefix tokens, and so no CLS token"

    def embeddings(self, tiles: Tensor) -> Features:
        """The embeddings (b, 1, d) in the place of prefix tokens, beside maps of one empty channel."""
        tile_hw = (tiles.shape[-2], tiles.shape[-1])
        grids = [self.grid_hw(tile_hw, layer) for layer in range(len(self.layouts))]
        maps = tuple(tiles.new_zeros(len(tiles), 1, *grid) for grid in grids)
        return Features(maps, (self.embed(tiles)[:, None],) * len(grids))

    @property
    def image_hw(self) -> Pair:
        """Height and width of a tile in pixels."""
        return self.input.image_hw

    @property
    def layout(self) -> Layout:
        """How the features of the first layer lie."""
        return self.layouts[0]

    def grid_hw(self, tile_hw: Pair, layer: int = 0) -> Pair:
        """Rows and columns of tokens for an image of this size in pixels."""
        layout = self.layouts[layer]
        if tile_hw == self.image_hw:
            return layout.grid_hw
        stride_h, stride_w = layout.stride_hw(self.image_hw)
        return tile_hw[0] // stride_h, tile_hw[1] // stride_w

    @property
    def stride_hw(self) -> Pair:
        """Pixels between tokens, of the coarsest layer: whole images have a multiple of it."""
        rows, cols = zip(*(layout.stride_hw(self.image_hw) for layout in self.layouts), strict=True)
        return max(rows), max(cols)

    @property
    def convolutional(self) -> bool:
        """Whether it is a convolutional network, which sees a scale whole by default."""
        return False

    @property
    def whole_multiple_hw(self) -> Pair:
        """Height and width in pixels of which images that are looked at whole must be multiples."""
        return self.stride_hw

    @property
    def refuses_other_sizes(self) -> str:
        """Why images of another size than `image_hw` cannot be looked at whole; empty if they can."""
        return f"{self.name} takes tiles of one size"

    @property
    def remedy_for_sizes(self) -> str:
        """How to make the model so that it takes other sizes; empty if nothing is known of it."""
        return ""

    def any_size(self, allow: bool) -> bool:
        """Let the model take other image sizes, or no longer; whether that changed anything."""
        return False

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which it takes tiles."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device("cpu")

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode for a while; every module goes back to the mode that it was in."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
