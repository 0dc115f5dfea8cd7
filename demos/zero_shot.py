"""Classify photographs zero-shot with open_clip at 1× and with S², and draw the probabilities of prompts.

    python demos/zero_shot.py [--model ViT-B-32] [--pretrained laion2b_s34b_b79k] [--scales 1,2]

Without --pretrained the weights are random: everything runs, but the results mean nothing (the picture says so). With a
tag, the weights come from the hub.
"""

from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from einops import rearrange
from photos import photo
from torch import Tensor

import s2wrap
from s2wrap.files import whole_file

PROMPTS = {
    "astronaut": "an astronaut in an orange suit",
    "cat": "a cat",
    "coffee": "a cup of coffee",
    "rocket": "a rocket on its launch pad",
}


def main(
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("zero_shot.png"),
    model: Annotated[str, typer.Option(help="An architecture of open_clip.")] = "ViT-B-32",
    pretrained: Annotated[str | None, typer.Option(help="A tag of its weights on the hub; random without.")] = None,
    scales: Annotated[str, typer.Option(help="Scales of S².")] = "1,2",
) -> None:
    """Write the picture, and print how many photographs go with their own prompt."""
    torch.manual_seed(0)
    clip = make(model, pretrained)
    pixels = {name: photo(name) for name in PROMPTS}
    text = embed_text(clip, model)
    results = {
        "1×": probabilities(clip, ("1",), list(pixels.values()), text),
        f"S² at {scales}": probabilities(clip, tuple(scales.split(",")), list(pixels.values()), text),
    }
    draw(pixels, results, trained=pretrained is not None, output=output)
    for title, likelihoods in results.items():
        correct = int((likelihoods.argmax(dim=1) == torch.arange(len(PROMPTS))).sum())
        print(f"{title}: {correct} of {len(PROMPTS)} photographs go with their own prompt")
    print(f"wrote {output}" + ("" if pretrained else "; the weights are random: give --pretrained TAG for an answer"))


def make(model: str, pretrained: str | None) -> Any:
    """Return open_clip's whole model, with the text tower. Exits with a one-line message if that fails."""
    import open_clip

    try:
        return open_clip.create_model(model, pretrained=pretrained, load_weights=pretrained is not None).eval()
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise SystemExit(f"open_clip cannot make {model} with weights {pretrained}: {reason}") from error


@torch.inference_mode()
def embed_text(clip: Any, model: str) -> Tensor:
    """Return the embeddings of the prompts (prompts, d), of unit length."""
    import open_clip

    tokens = open_clip.get_tokenizer(model)([f"a photo of {prompt}" for prompt in PROMPTS.values()])
    return clip.encode_text(tokens, normalize=True)


@torch.inference_mode()
def probabilities(clip: Any, scales: tuple[str, ...], pictures: list[np.ndarray], text: Tensor) -> Tensor:
    """Return the probability of each prompt for each picture: (pictures, prompts)."""
    model = s2wrap.wrap(clip, scales)
    images = [rearrange(torch.from_numpy(pixels), "h w c -> 1 c h w") for pixels in pictures]
    embeddings = torch.cat([model.encode_image(image, normalize=True) for image in images])
    return (clip.logit_scale.exp() * embeddings @ text.T).softmax(dim=1)


def draw(pixels: dict[str, np.ndarray], results: dict[str, Tensor], *, trained: bool, output: Path) -> None:
    """Draw photographs with the probability of every prompt beside each, its own prompt in bold."""
    figure, axes = plt.subplots(
        len(pixels), 2, figsize=(8, 1.9 * len(pixels) + 0.5), layout="constrained", width_ratios=(1, 2.6)
    )
    figure.suptitle("Zero-shot classification" + ("" if trained else " with RANDOM weights: the bars mean nothing"))
    for row, (name, picture) in enumerate(pixels.items()):
        left, right = axes[row]
        left.imshow(picture)
        left.set_axis_off()
        for k, (title, likelihoods) in enumerate(results.items()):
            heights = [index + 0.4 * (k - 0.5) for index in range(len(PROMPTS))]
            right.barh(heights, likelihoods[row].tolist(), height=0.38, label=title, color=("#8aa9c9", "#d0693a")[k])
        right.set(xlim=(0, 1), yticks=range(len(PROMPTS)), yticklabels=list(PROMPTS.values()))
        right.get_yticklabels()[list(PROMPTS).index(name)].set_fontweight("bold")
        right.invert_yaxis()
        right.spines[["top", "right"]].set_visible(False)
    axes[0][1].legend(fontsize=8, loc="lower right")
    axes[-1][1].set_xlabel("probability")
    with whole_file(output) as draft:
        figure.savefig(draft, dpi=90)


if __name__ == "__main__":
    typer.run(main)
