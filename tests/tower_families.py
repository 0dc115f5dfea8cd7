"""Tiny random models of the multimodal families of transformers, and inputs for them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

CLASSES: dict[str, str] = dict(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)  # pyright: ignore[reportAssignmentType]
SIDE, PATCH, IMAGE = 32, 8, 7
"""Pixels of an image, and of a patch; the token that stands for an image."""
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
ENDS = {"vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
Config = dict[str, Any]


def vision(kind: str = "siglip_vision_model", **changes: Any) -> Config:
    return {"model_type": kind, "image_size": SIDE, "patch_size": PATCH} | SIZES | changes


def text(kind: str = "llama", **changes: Any) -> Config:
    return {"model_type": kind, "num_key_value_heads": 2, "head_dim": 16} | SIZES | ENDS | changes


def timm_vision(architecture: str, **changes: Any) -> Config:
    return {"model_type": "timm_wrapper", "architecture": architecture, "do_pooling": True} | changes


def random_pixels(side: int, seed: int = 0) -> Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


@dataclass
class Family:
    """How a tiny model is made, and asked.

    Attributes:
        kind: of model, as transformers calls it.
        tokens: image tokens in the text.
        vision: the configuration of its tower; None for models that keep it elsewhere.
        text: that of its language model.
        config: what else its configuration says.
        inputs: what else it is given, from the pixels (1, 3, side, side); None instead of what all are given.
        side: of an image in pixels.
        image_size: what `wrap_tower` is told, where the tower's configuration says no size.
    """

    kind: str
    tokens: int
    vision: Config | None = field(default_factory=vision)
    text: Config | None = field(default_factory=text)
    config: Config = field(default_factory=dict)
    inputs: Callable[[Tensor], dict[str, Any]] = lambda pixels: {}
    side: int = SIDE
    image_size: int | None = None

    def model(self) -> Any:
        """A model of random weights, to whose answer the image matters."""
        torch.manual_seed(0)
        kind: Any = CONFIG_MAPPING[self.kind]
        known = {name for base in kind.__mro__ for name in vars(base).get("__annotations__", {})}
        parts = {"vision_config": self.vision, "text_config": self.text}
        parts |= {name: IMAGE for name in ("image_token_index", "image_token_id") if name in known}
        parts = {name: part for name, part in parts.items() if part is not None}
        model = getattr(transformers, CLASSES[self.kind])(kind(**parts | self.config)).eval()
        for parameter in model.parameters():  # some are zero at first
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
        return model

    def ask(self, side: int, seed: int = 0) -> dict[str, Any]:
        """Inputs with one image of random pixels."""
        pixels = random_pixels(side, seed)
        ids = torch.tensor([[1, *[IMAGE] * self.tokens, 5, 3]])
        asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
        return {name: value for name, value in (asked | self.inputs(pixels)).items() if value is not None}


def one_of_a_list(pixels: Tensor) -> dict[str, Any]:
    """(1, images, 3, side, side)."""
    return {"pixel_values": pixels[:, None]}


def whole_and_tile(pixels: Tensor) -> dict[str, Any]:
    """What LLaVA-NeXT's processor makes of an image of one tile: the image, and the tile."""
    return {"pixel_values": torch.stack([pixels, pixels], dim=1), "image_sizes": torch.tensor([[SIDE, SIDE]])}


def of_native_size(pixels: Tensor) -> dict[str, Any]:
    """The size that Pixtral's tokens stand for, whatever the size of the pixels."""
    return {"image_sizes": torch.tensor([[SIDE, SIDE]])}


ONE_TILE = {"image_grid_pinpoints": [[SIDE, SIDE]]}
CLIP = vision("clip_vision_model")
PAIR = {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}
QFORMER = {"num_query_tokens": 4, "qformer_config": {**SIZES, "encoder_hidden_size": 32, "vocab_size": 128}}
SAM = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 8}
SAM |= {"mlp_dim": 64, "window_size": 2, "global_attn_indexes": [1]}
QUESTION = {"qformer_input_ids": torch.tensor([[1, 4, 5]])}

LLAVAS = [  # LLaVA and its relatives
    Family("llava", 16, CLIP),
    Family("llava", 16, config={"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}),
    Family(
        "llava",
        16,
        vision("pixtral", head_dim=16),
        config={"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        inputs=of_native_size,
    ),
    Family("llava_next", 36, CLIP, config=ONE_TILE, inputs=whole_and_tile),
    Family("llava_next_video", 36, CLIP, config=ONE_TILE, inputs=whole_and_tile),
    Family("llava_onevision", 36, config=ONE_TILE, inputs=whole_and_tile),
    Family("vipllava", 16, CLIP, config={"vision_feature_layer": [-2, -1, 1]}),
    Family(
        "video_llava",
        17,
        CLIP,
        config={"vision_feature_select_strategy": "full"},
        inputs=lambda pixels: {"pixel_values": None, "pixel_values_images": pixels},
    ),
    Family(
        "granite4_vision",
        10,
        vision(hidden_size=64),
        text("granite4_vision_text"),
        config={
            **ONE_TILE,
            "deepstack_layer_map": [[1, 0]],
            "spatial_target_layers": [0, 0, 1, 1],
            "downsample_rate": "1/2",
            "vision_feature_select_strategy": "full",
            "qformer_config": {"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 64}
            | {"cross_attention_frequency": 1, "vocab_size": 128},
        },
        inputs=whole_and_tile,
    ),
    Family(
        "perception_lm", 4, timm_vision("test_vit", model_args={"embed_dim": 64}), inputs=one_of_a_list, image_size=SIDE
    ),
    Family("fast_vlm", 4, timm_vision("test_resnet", hidden_size=96), side=64, image_size=64),
]
OTHERS = [
    Family("paligemma", 16, text=text("gemma"), config={"projection_dim": 32, "hidden_size": 32}),
    Family("gemma3", 4, text=text("gemma3_text"), config={"mm_tokens_per_image": 4}),
    Family(
        "gemma3n",
        4,
        {"architecture": "test_resnet", "hidden_size": 96, "vocab_size": 8, "vocab_offset": 128},
        text("gemma3n_text", num_kv_shared_layers=0, vocab_size_per_layer_input=128, laurel_rank=4)
        | {"hidden_size_per_layer_input": 8, "activation_sparsity_pattern": [0.0, 0.0]}
        | {"layer_types": ["full_attention", "full_attention"]},
        config={
            "vision_soft_tokens_per_image": 4,
            "audio_config": {"vocab_size": 8, "vocab_offset": 136, "hidden_size": 32, "conf_num_hidden_layers": 1}
            | {"conf_num_attention_heads": 2, "sscp_conv_channel_size": [4, 4]},
        },
        side=64,
        image_size=64,
    ),
    Family(
        "t5gemma2",
        4,
        None,
        None,
        config={
            "encoder": {"vision_config": vision(), "text_config": text("t5gemma2_text")}
            | {"mm_tokens_per_image": 4, "image_token_index": IMAGE},
            "decoder": text("t5gemma2_decoder"),
        },
        inputs=lambda pixels: {"decoder_input_ids": torch.tensor([[1, 4]])},
    ),
    Family("internvl", 4, vision("internvl_vision", **PAIR)),
    Family("qianfan_ocr", 4, vision("qianfan_ocr_vision", **PAIR)),
    Family("idefics3", 4, vision("idefics3_vision"), config={"scale_factor": 2}, inputs=one_of_a_list),
    Family("smolvlm", 4, vision("smolvlm_vision"), config={"scale_factor": 2}, inputs=one_of_a_list),
    Family(
        "idefics2",
        4,
        vision("idefics2_vision"),
        text("mistral"),
        config={
            "perceiver_config": {"hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1}
            | {"resampler_n_heads": 2, "resampler_head_dim": 16, "num_key_value_heads": 1}
        },
        inputs=one_of_a_list,
    ),
    Family(
        "idefics",
        0,
        {"embed_dim": 32, "image_size": SIDE, "patch_size": PATCH, "intermediate_size": 64}
        | {"num_hidden_layers": 2, "num_attention_heads": 2},
        None,
        config={**SIZES, **ENDS, "alpha_initializer": "ones", "dropout": 0.0},
        inputs=lambda pixels: {"image_attention_mask": torch.ones(1, 3, 1, dtype=torch.long), **one_of_a_list(pixels)},
    ),
    Family("mistral3", 4, vision("pixtral", head_dim=16), text("mistral"), inputs=of_native_size),
    Family("lighton_ocr", 4, vision("pixtral", head_dim=16), text("qwen3"), inputs=of_native_size),
    Family("aya_vision", 4, text=text("cohere2")),
    Family("cohere2_vision", 4, text=text("cohere2"), config={"alignment_intermediate_size": 64}),
    Family(
        "aria",
        4,
        vision("idefics3_vision"),
        text("aria_text", moe_num_experts=2),
        config={"projector_patch_to_query_dict": {16: 4}},
    ),
    Family("deepseek_vl", 16),
    Family(
        "deepseek_vl_hybrid",
        16,
        config={"high_res_vision_config": {**SAM, "output_channels": 32}},
        inputs=lambda pixels: {"high_res_pixel_values": random_pixels(64)},
    ),
    Family(
        "janus",
        16,
        vision("janus_vision_model", projection_dim=32, num_image_tokens=16),
        config={
            "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "num_embeddings": 16, "embed_dim": 8}
            | {"latent_channels": 8, "projection_dim": 32, "image_token_embed_dim": 32, "num_patches": 4}
        },
    ),
    Family("got_ocr2", 4, {**SAM, "output_channels": 256}, text("qwen2"), side=64),
    Family(
        "ovis2",
        16,
        vision("ovis2_vision", vocab_size=64, qkv_bias=True),
        text("qwen2"),
        config={"vocab_size": 128, "hidden_size": 32, "visual_indicator_token_ids": [8, 9, 10, 11, 12]},
    ),
    Family(
        "llama4",
        4,
        vision("llama4_vision_model", intermediate_size=128, vision_output_dim=32)
        | {"projector_input_dim": 32, "projector_output_dim": 32},
        text("llama4_text", num_local_experts=2, intermediate_size_mlp=64),
    ),
    Family("step3p7", 4, vision("step3p5_vision", image_size=64), text("step3p5", sliding_window=8), side=64),
    Family("blip-2", 4, vision("blip_2_vision_model"), config=QFORMER),
    Family("instructblip", 4, vision("instructblip_vision_model"), config=QFORMER, inputs=lambda pixels: QUESTION),
    Family(
        "instructblipvideo",
        8,
        vision("instructblipvideo_vision_model"),
        config={**QFORMER, "video_token_index": IMAGE},
        inputs=lambda pixels: {"pixel_values": torch.stack([pixels, pixels], dim=1), **QUESTION},
    ),
    Family(
        "blip",
        0,
        vision("blip_vision_model"),
        {**SIZES, **ENDS, "encoder_hidden_size": 32, "projection_dim": 32, "sep_token_id": 2},
    ),
    Family("git", 0, vision("git_vision_model"), None, config={**SIZES, **ENDS}),
    Family(
        "kosmos-2",
        4,
        vision("kosmos_2_vision_model"),
        {**ENDS, "embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 2},
        config={"latent_query_num": 4},
        inputs=lambda pixels: {"image_embeds_position_mask": torch.tensor([[0, 1, 1, 1, 1, 0, 0]])},
    ),
    Family(
        "florence2",
        5,
        {"depths": [1, 1, 1, 1], "embed_dim": [8, 16, 16, 32], "num_heads": [1, 1, 1, 2], "num_groups": [1, 1, 1, 2]}
        | {"window_size": 4, "projection_dim": 32},
        {"model_type": "bart", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32}
        | {"decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, **ENDS},
        inputs=lambda pixels: {"decoder_input_ids": torch.tensor([[2, 4]])},
        side=64,
        image_size=64,
    ),
    Family(
        "vision-encoder-decoder",
        0,
        None,
        None,
        config={
            "encoder": vision("vit"),
            "decoder": {"model_type": "bert", "is_decoder": True, "add_cross_attention": True, **SIZES, **ENDS},
            "decoder_start_token_id": 1,
            "pad_token_id": 0,
            "eos_token_id": 2,
        },
        inputs=lambda pixels: {"input_ids": None, "attention_mask": None, "decoder_input_ids": torch.tensor([[1, 4]])},
    ),
]
FAMILIES = LLAVAS + OTHERS
"""Those whose tower can be wrapped."""
