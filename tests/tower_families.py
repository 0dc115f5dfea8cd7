"""Tiny random models of the multimodal families of transformers, and inputs for them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

SIDE, PATCH, IMAGE = 32, 8, 7
"""Pixels of an image, and of a patch; the token that stands for an image."""
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
ENDS = {"vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def vision(kind: str = "siglip_vision_model", **changes: Any) -> Any:
    return CONFIG_MAPPING[kind](**(SIZES | {"image_size": SIDE, "patch_size": PATCH} | changes))


def text(kind: str = "llama", **changes: Any) -> Any:
    return CONFIG_MAPPING[kind](**(SIZES | ENDS | {"num_key_value_heads": 2, "head_dim": 16} | changes))


CLIP, SIGLIP = (lambda: vision("clip_vision_model")), vision


@dataclass
class Family:
    """How a tiny model is made, and asked.

    Attributes:
        kind: of model, as transformers calls it.
        tokens: how many image tokens stand in the prompt.
        vision: its tower's configuration.
        text: its language model's.
        config: what else its configuration says.
        inputs: what else it is given, from the side of the image in pixels.
        pixels: the pixels as it takes them, from (1, 3, side, side).
        name: of its class, where transformers lists it under none.
    """

    kind: str
    tokens: int
    vision: Callable[[], Any] = SIGLIP
    text: Callable[[], Any] = text
    config: dict[str, Any] = field(default_factory=dict)
    inputs: Callable[[int], dict[str, Any]] = lambda side: {}
    pixels: Callable[[torch.Tensor], torch.Tensor] = lambda pixels: pixels
    name: str | None = None
    side: int = SIDE
    image_size: int | None = None

    def model(self) -> Any:
        torch.manual_seed(0)
        parts = {"vision_config": self.vision(), "text_config": self.text()}
        kind = CONFIG_MAPPING[self.kind]
        known = {name for base in kind.__mro__ for name in vars(base).get("__annotations__", {})}
        marks = {name: IMAGE for name in ("image_token_index", "image_token_id") if name in known}
        parts = {name: part for name, part in parts.items() if part is not None}
        config = kind(**(parts | marks | self.config))
        model = getattr(transformers, self.name or CLASSES[self.kind])(config).eval()
        for parameter in model.parameters():  # some are zero at first: the image would not matter
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
        return model

    def ask(self, side: int, seed: int = 0) -> dict[str, Any]:
        """Inputs with one image of random pixels."""
        pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
        ids = torch.tensor([[1, *[IMAGE] * self.tokens, 5, 3]])
        asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": self.pixels(pixels)}
        return {name: value for name, value in (asked | self.inputs(side)).items() if value is not None}


PINPOINTS = {"image_grid_pinpoints": [[32, 32]]}
IDEFICS_SIZES = lambda kind: lambda: vision(kind, image_size=SIDE, patch_size=PATCH)

FAMILIES = [
    Family("llava", 16, CLIP, config={"vision_feature_layer": -2}),
    Family(
        "llava_next",
        16 + 16 + 4,
        CLIP,
        config=PINPOINTS,
        pixels=lambda pixels: pixels[:, None].repeat(1, 2, 1, 1, 1),
        inputs=lambda side: {"image_sizes": torch.tensor([[32, 32]])},
    ),
    Family(
        "llava_next_video",
        16 + 16 + 4,
        CLIP,
        config=PINPOINTS,
        pixels=lambda pixels: pixels[:, None].repeat(1, 2, 1, 1, 1),
        inputs=lambda side: {"image_sizes": torch.tensor([[32, 32]])},
    ),
    Family(
        "llava_onevision",
        16 + 16 + 4,
        config=PINPOINTS,
        pixels=lambda pixels: pixels[:, None].repeat(1, 2, 1, 1, 1),
        inputs=lambda side: {"image_sizes": torch.tensor([[32, 32]])},
    ),
    Family("vipllava", 16, CLIP, config={"vision_feature_layer": [-2, -1, 1]}),
    Family(
        "video_llava",
        17,
        CLIP,
        config={"vision_feature_select_strategy": "full"},
        inputs=lambda side: {
            "pixel_values": None,
            "pixel_values_images": torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)),
        },
    ),
    Family("paligemma", 16, text=lambda: text("gemma"), config={"projection_dim": 32, "hidden_size": 32}),
    Family("gemma3", 4, text=lambda: text("gemma3_text"), config={"mm_tokens_per_image": 4}),
    Family("internvl", 4, lambda: vision("internvl_vision", image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH])),
    Family("qianfan_ocr", 4, lambda: vision("qianfan_ocr_vision", image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH])),
    Family(
        "idefics3",
        4,
        lambda: vision("idefics3_vision"),
        config={"scale_factor": 2},
        pixels=lambda pixels: pixels[:, None],
    ),
    Family(
        "smolvlm",
        4,
        lambda: vision("smolvlm_vision"),
        config={"scale_factor": 2},
        pixels=lambda pixels: pixels[:, None],
    ),
    Family(
        "idefics2",
        4,
        lambda: vision("idefics2_vision"),
        lambda: text("mistral"),
        pixels=lambda pixels: pixels[:, None],
        config={
            "perceiver_config": {
                "hidden_size": 32,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 16,
                "num_key_value_heads": 1,
            }
        },
    ),
    Family(
        "mistral3",
        4,
        lambda: vision("pixtral", head_dim=16),
        lambda: text("mistral"),
        inputs=lambda side: {"image_sizes": torch.tensor([[SIDE, SIDE]])},
    ),
    Family(
        "lighton_ocr",
        4,
        lambda: vision("pixtral", head_dim=16),
        lambda: text("qwen3"),
        inputs=lambda side: {"image_sizes": torch.tensor([[SIDE, SIDE]])},
    ),
    Family("aya_vision", 4, text=lambda: text("cohere2")),
    Family("cohere2_vision", 4, text=lambda: text("cohere2"), config={"alignment_intermediate_size": 64}),
    Family(
        "aria",
        4,
        lambda: vision("idefics3_vision"),
        lambda: text("aria_text", moe_num_experts=2),
        config={"projector_patch_to_query_dict": {16: 4}},
    ),
    Family("deepseek_vl", 16),
    Family(
        "janus",
        16,
        lambda: vision("janus_vision_model", projection_dim=32, num_image_tokens=16),
        config={
            "vq_config": {
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_embeddings": 16,
                "embed_dim": 8,
                "latent_channels": 8,
                "projection_dim": 32,
                "image_token_embed_dim": 32,
                "num_patches": 4,
            }
        },
    ),
    Family(
        "got_ocr2",
        4,
        side=64,
        vision=lambda: (
            CONFIG_MAPPING["got_ocr2"](
                vision_config={
                    "hidden_size": 32,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "image_size": 64,
                    "patch_size": 8,
                    "output_channels": 256,
                    "mlp_dim": 64,
                    "window_size": 2,
                    "global_attn_indexes": [1],
                    "initializer_range": 0.02,
                }
            ).vision_config
        ),
        text=lambda: text("qwen2"),
    ),
    Family(
        "ovis2",
        16,
        lambda: vision("ovis2_vision", vocab_size=64, qkv_bias=True),
        text=lambda: text("qwen2"),
        config={"vocab_size": 128, "hidden_size": 32, "visual_indicator_token_ids": [8, 9, 10, 11, 12]},
    ),
    Family(
        "blip-2",
        4,
        lambda: vision("blip_2_vision_model", initializer_range=0.02),
        config={"num_query_tokens": 4, "qformer_config": SIZES | {"encoder_hidden_size": 32, "vocab_size": 128}},
    ),
    Family(
        "instructblip",
        4,
        lambda: vision("instructblip_vision_model", initializer_range=0.02),
        config={"num_query_tokens": 4, "qformer_config": SIZES | {"encoder_hidden_size": 32, "vocab_size": 128}},
        inputs=lambda side: {"qformer_input_ids": torch.tensor([[1, 4, 5]])},
    ),
    Family(
        "blip",
        0,
        lambda: vision("blip_vision_model", initializer_range=0.02),
        lambda: CONFIG_MAPPING["blip_text_model"](
            **(SIZES | ENDS | {"encoder_hidden_size": 32, "projection_dim": 32, "sep_token_id": 2})
        ),
    ),
    Family("git", 0, lambda: vision("git_vision_model"), lambda: None, config=SIZES | ENDS),
    Family(
        "kosmos-2",
        4,
        lambda: vision("kosmos_2_vision_model"),
        lambda: (
            CONFIG_MAPPING["kosmos-2"](
                text_config=ENDS | {"embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 2}
            ).text_config
        ),
        config={"latent_query_num": 4},
        inputs=lambda side: {"image_embeds_position_mask": torch.tensor([[0, 1, 1, 1, 1, 0, 0]])},
    ),
    Family(
        "llama4",
        4,
        lambda: vision(
            "llama4_vision_model",
            vision_output_dim=32,
            projector_input_dim=32,
            projector_output_dim=32,
            intermediate_size=128,
        ),
        lambda: text("llama4_text", num_local_experts=2, intermediate_size_mlp=64),
    ),
    Family(
        "granite4_vision",
        4 + 4 + 2,
        lambda: vision("siglip_vision_model", hidden_size=64),
        lambda: text("granite4_vision_text"),
        config={
            "deepstack_layer_map": [[1, 0]],
            "spatial_target_layers": [0, 0, 1, 1],
            "spatial_vision_layer": -1,
            "downsample_rate": "1/2",
            "image_grid_pinpoints": [[32, 32]],
            "vision_feature_select_strategy": "full",
            "qformer_config": {
                "model_type": "blip_2_qformer",
                "num_hidden_layers": 1,
                "intermediate_size": 64,
                "cross_attention_frequency": 1,
                "vocab_size": 128,
            },
        },
        pixels=lambda pixels: pixels[:, None].repeat(1, 2, 1, 1, 1),
        inputs=lambda side: {"image_sizes": torch.tensor([[32, 32]])},
    ),
    Family(
        "perception_lm",
        4,
        image_size=32,
        vision=lambda: CONFIG_MAPPING["timm_wrapper"](
            architecture="test_vit", do_pooling=True, model_args={"embed_dim": 64}
        ),
        config={"vision_use_cls_token": True},
        pixels=lambda pixels: pixels[:, None],
    ),
    Family(
        "fast_vlm",
        4,
        side=64,
        image_size=64,
        vision=lambda: CONFIG_MAPPING["timm_wrapper"](architecture="test_resnet", do_pooling=True, hidden_size=96),
    ),
    Family(
        "deepseek_vl_hybrid",
        16,
        inputs=lambda side: {
            "high_res_pixel_values": torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        },
        config={
            "high_res_vision_config": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 64,
                "patch_size": 8,
                "output_channels": 32,
                "mlp_dim": 64,
                "window_size": 2,
                "global_attn_indexes": [1],
            }
        },
    ),
    Family(
        "idefics",
        0,
        lambda: (
            CONFIG_MAPPING["idefics"](
                vision_config={
                    "embed_dim": 32,
                    "image_size": 32,
                    "patch_size": 8,
                    "intermediate_size": 64,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                }
            ).vision_config
        ),
        lambda: None,
        config=SIZES | ENDS | {"alpha_initializer": "ones", "dropout": 0.0},
        pixels=lambda pixels: pixels[:, None],
        inputs=lambda side: {"image_attention_mask": torch.ones(1, 3, 1, dtype=torch.long)},
    ),
    Family(
        "gemma3n",
        4,
        side=64,
        image_size=64,
        vision=lambda: CONFIG_MAPPING["gemma3n_vision"](
            architecture="test_resnet", hidden_size=96, vocab_size=8, vocab_offset=128
        ),
        text=lambda: text(
            "gemma3n_text",
            num_kv_shared_layers=0,
            vocab_size_per_layer_input=128,
            hidden_size_per_layer_input=8,
            laurel_rank=4,
            activation_sparsity_pattern=[0.0, 0.0],
            layer_types=["full_attention", "full_attention"],
        ),
        config={
            "vision_soft_tokens_per_image": 4,
            "audio_config": {
                "vocab_size": 8,
                "vocab_offset": 136,
                "hidden_size": 32,
                "conf_num_hidden_layers": 1,
                "conf_num_attention_heads": 2,
                "sscp_conv_channel_size": [4, 4],
            },
        },
    ),
    Family(
        "vision-encoder-decoder",
        0,
        lambda: None,
        lambda: None,
        config={
            "encoder": vision("vit").to_dict(),
            "decoder": CONFIG_MAPPING["bert"](is_decoder=True, add_cross_attention=True, **SIZES, **ENDS).to_dict(),
            "decoder_start_token_id": 1,
            "pad_token_id": 0,
            "eos_token_id": 2,
        },
        inputs=lambda side: {"input_ids": None, "attention_mask": None, "decoder_input_ids": torch.tensor([[1, 4]])},
    ),
    Family(
        "instructblipvideo",
        8,
        lambda: vision("instructblipvideo_vision_model", initializer_range=0.02),
        config={
            "num_query_tokens": 4,
            "qformer_config": SIZES | {"encoder_hidden_size": 32, "vocab_size": 128},
            "video_token_index": IMAGE,
        },
        inputs=lambda side: {"qformer_input_ids": torch.tensor([[1, 4, 5]])},
        pixels=lambda pixels: pixels[:, None].repeat(1, 2, 1, 1, 1),
    ),
    Family(
        "florence2",
        5,
        side=64,
        image_size=64,
        vision=lambda: CONFIG_MAPPING["florence_vision"](
            depths=[1, 1, 1, 1],
            embed_dim=[8, 16, 16, 32],
            num_heads=[1, 1, 1, 2],
            num_groups=[1, 1, 1, 2],
            window_size=4,
            projection_dim=32,
        ),
        text=lambda: CONFIG_MAPPING["bart"](
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            **ENDS,
        ),
        inputs=lambda side: {"decoder_input_ids": torch.tensor([[2, 4]])},
    ),
    Family(
        "step3p7",
        4,
        side=64,
        vision=lambda: vision("step3p5_vision", image_size=64),
        text=lambda: text("step3p5", sliding_window=8),
    ),
    Family(
        "t5gemma2",
        4,
        lambda: None,
        lambda: None,
        config={
            "encoder": {
                "vision_config": vision().to_dict(),
                "text_config": text("t5gemma2_text").to_dict(),
                "mm_tokens_per_image": 4,
                "image_token_index": IMAGE,
            },
            "decoder": text("t5gemma2_decoder").to_dict(),
        },
        inputs=lambda side: {"decoder_input_ids": torch.tensor([[1, 4]])},
    ),
]
