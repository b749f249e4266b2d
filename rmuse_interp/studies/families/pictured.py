"""Recipes of the families that read pictures."""

from typing import Final

from rmuse_interp.studies.families.recipe import (
    CHATML,
    COHERE,
    GEMMA,
    GEMMA_TURNS,
    IDEFICS,
    IM,
    LLAMA,
    LLAMA_TURNS,
    MISTRAL,
    QWEN,
    ROWS,
    TEXT,
    TOWER,
    VICUNA,
    WITH_HEADS,
    Recipe,
    Settings,
)


def _clip(name: str) -> Settings:
    return {"model_type": name, **TOWER}


_SHORT: Final[Settings] = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
_SQUARE: Final[Settings] = {"size": {"height": 24, "width": 24}}
_GRID: Final = [[24, 48], [48, 24]]
_LLAVA: Final[Settings] = {
    "patch_size": 8,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}


def _qwen_vl(
    name: str, config: str, processor: str, vision: Settings, text: Settings, films: str, patch: int
) -> Recipe:
    return Recipe(
        name,
        config,
        {
            **text,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        },
        CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
        QWEN,
        {
            "patch_size": patch,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_heads": 2,
            "depth": 2,
            **vision,
        },
        {
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        },
        processor,
        (
            "Qwen2VLImageProcessor",
            {
                "patch_size": patch,
                "merge_size": 2,
                "size": {"shortest_edge": (4 * patch) ** 2, "longest_edge": (6 * patch) ** 2},
            },
        ),
        films,
        end="<|im_end|>",
    )


def _idefics(name: str, config: str, processor: str, reads: str, films: str | None, tower: str) -> Recipe:
    return Recipe(
        name,
        config,
        {"model_type": "llama", **TEXT, "pad_token_id": 0},
        IDEFICS,
        (
            "<|im_start|>",
            "<end_of_utterance>",
            "<fake_token_around_image>",
            "<image>",
            "<global-img>",
            *ROWS,
        ),
        {"model_type": tower, **TOWER, "image_size": 32},
        {"scale_factor": 2, "image_token_id": "<image>"},
        processor,
        (
            reads,
            {
                "size": {"longest_edge": 64},
                "max_image_size": {"longest_edge": 32},
                "do_image_splitting": True,
            },
        ),
        films,
        {"image_seq_len": 4},
        {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"},
        "<end_of_utterance>",
    )


PICTURED: Final[tuple[Recipe, ...]] = (
    Recipe(
        "LLaVA-1.5",
        "llava",
        {"model_type": "llama", **TEXT},
        VICUNA,
        ("<image>",),
        _clip("clip_vision_model"),
        {"image_token_index": "<image>", "image_seq_length": 9, "vision_feature_select_strategy": "default"},
        "LlavaProcessor",
        ("CLIPImageProcessorPil", _SHORT),
        processing=_LLAVA,
        named={"image_token": "<image>"},
    ),
    Recipe(
        "LLaVA-NeXT",
        "llava_next",
        {"model_type": "mistral", **TEXT},
        MISTRAL.replace("[IMG]", "<image>\n"),
        ("<image>",),
        _clip("clip_vision_model"),
        {
            "image_token_index": "<image>",
            "image_grid_pinpoints": _GRID,
            "vision_feature_select_strategy": "default",
        },
        "LlavaNextProcessor",
        ("LlavaNextImageProcessorPil", {**_SHORT, "image_grid_pinpoints": _GRID}),
        processing=_LLAVA,
        named={"image_token": "<image>"},
    ),
    Recipe(
        "LLaVA-OneVision",
        "llava_onevision",
        {"model_type": "qwen2", **TEXT},
        CHATML.replace("IMAGE", "<image>\n"),
        (*IM, "<image>", "<video>"),
        _clip("siglip_vision_model"),
        {
            "image_token_index": "<image>",
            "video_token_index": "<video>",
            "image_grid_pinpoints": _GRID,
            "vision_feature_select_strategy": "full",
        },
        "LlavaOnevisionProcessor",
        ("LlavaOnevisionImageProcessor", {**_SQUARE, "image_grid_pinpoints": _GRID}),
        "LlavaOnevisionVideoProcessor",
        {"num_image_tokens": 9, "vision_feature_select_strategy": "full"},
        {"image_token": "<image>", "video_token": "<video>"},
        "<|im_end|>",
    ),
    _qwen_vl(
        "Qwen2-VL",
        "qwen2_vl",
        "Qwen2VLProcessor",
        {"embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2},
        TEXT,
        "Qwen2VLVideoProcessor",
        8,
    ),
    _qwen_vl(
        "Qwen2.5-VL",
        "qwen2_5_vl",
        "Qwen2_5_VLProcessor",
        {
            "hidden_size": 24,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        TEXT,
        "Qwen2VLVideoProcessor",
        8,
    ),
    _qwen_vl(
        "Qwen3-VL",
        "qwen3_vl",
        "Qwen3VLProcessor",
        {
            "hidden_size": 24,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 1],
        },
        WITH_HEADS,
        "Qwen3VLVideoProcessor",
        8,
    ),
    Recipe(
        "Gemma 3",
        "gemma3",
        {**WITH_HEADS, "query_pre_attn_scalar": 8, "sliding_window": 64, "sliding_window_pattern": 2},
        GEMMA,
        (*GEMMA_TURNS, "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        _clip("siglip_vision_model"),
        {
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
            "image_token_index": "<image_soft_token>",
            "mm_tokens_per_image": 9,
        },
        "Gemma3Processor",
        ("Gemma3ImageProcessorPil", _SQUARE),
        processing={"image_seq_length": 9},
        named={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        end="<end_of_turn>",
    ),
    Recipe(
        "PaliGemma",
        "paligemma",
        {"model_type": "gemma", **WITH_HEADS},
        None,
        ("<image>",),
        {**_clip("siglip_vision_model"), "projection_dim": 32},
        {"image_token_index": "<image>", "projection_dim": 32, "hidden_size": 32},
        "PaliGemmaProcessor",
        ("SiglipImageProcessorPil", {**_SQUARE, "image_seq_length": 9}),
        named={"image_token": "<image>"},
    ),
    _idefics(
        "Idefics3", "idefics3", "Idefics3Processor", "Idefics3ImageProcessorPil", None, "idefics3_vision"
    ),
    _idefics(
        "SmolVLM",
        "smolvlm",
        "SmolVLMProcessor",
        "SmolVLMImageProcessor",
        "SmolVLMVideoProcessor",
        "smolvlm_vision",
    ),
    Recipe(
        "InternVL",
        "internvl",
        {"model_type": "qwen2", **TEXT},
        CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
        (*IM, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        {"model_type": "internvl_vision", **TOWER, "image_size": [32, 32], "patch_size": [8, 8]},
        {"image_token_id": "<IMG_CONTEXT>", "image_seq_length": 4, "downsample_ratio": 0.5},
        "InternVLProcessor",
        (
            "GotOcr2ImageProcessor",
            {
                "size": {"height": 32, "width": 32},
                "crop_to_patches": True,
                "max_patches": 4,
                "min_patches": 1,
            },
        ),
        "InternVLVideoProcessor",
        {"image_seq_length": 4},
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        "<|im_end|>",
    ),
    Recipe(
        "Mistral 3",
        "mistral3",
        {"model_type": "mistral", **WITH_HEADS},
        MISTRAL,
        ("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        {"model_type": "pixtral", **TOWER, "image_size": 64, "head_dim": 12},
        {"image_token_index": "[IMG]", "spatial_merge_size": 2},
        "PixtralProcessor",
        ("PixtralImageProcessorPil", {"size": {"longest_edge": 64}, "patch_size": {"height": 8, "width": 8}}),
        processing={"patch_size": 8, "spatial_merge_size": 2},
    ),
    Recipe(
        "Aya Vision",
        "aya_vision",
        {
            "model_type": "cohere2",
            **WITH_HEADS,
            "sliding_window": 64,
            "layer_norm_eps": 1e-5,
            "logit_scale": 1.0,
        },
        COHERE,
        (
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<image>",
            "<|START_OF_IMG|>",
            "<|END_OF_IMG|>",
            "<|IMG_PATCH|>",
            "TILE_GLOBAL",
            *(f"TILE_{i}" for i in range(1, 5)),
        ),
        {**_clip("siglip_vision_model"), "image_size": 32},
        {"image_token_index": "<|IMG_PATCH|>", "downsample_factor": 2, "alignment_intermediate_size": 32},
        "AyaVisionProcessor",
        (
            "GotOcr2ImageProcessorPil",
            {
                "size": {"height": 32, "width": 32},
                "crop_to_patches": True,
                "max_patches": 4,
                "min_patches": 1,
            },
        ),
        processing={"patch_size": 8, "img_size": 32, "downsample_factor": 2},
        end="<|END_OF_TURN_TOKEN|>",
    ),
    Recipe(
        "Mllama",
        "mllama",
        {**TEXT, "num_hidden_layers": 6, "cross_attention_layers": [1], "pad_token_id": 0},
        LLAMA,
        (*LLAMA_TURNS, "<|image|>", "<|python_tag|>"),
        {
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "vision_output_dim": 48,
            "intermediate_layers_indices": [0],
            "image_size": 24,
            "patch_size": 8,
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        {"image_token_index": "<|image|>"},
        "MllamaProcessor",
        ("MllamaImageProcessorPil", {"size": {"height": 24, "width": 24}, "max_image_tiles": 2}),
        named={"image_token": "<|image|>"},
        end="<|eot_id|>",
    ),
    Recipe(
        "Phi-4-multimodal",
        "phi4_multimodal",
        {**TEXT, "pad_token_id": 0},
        CHATML.replace("IMAGE", "<|image|>"),
        (*IM, "<|image|>", "<|audio|>"),
        {**TOWER, "crop_size": 24, "image_token_id": "<|image|>"},
        {
            "audio_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_blocks": 1,
                "num_attention_heads": 2,
                "ext_pw_out_channel": 16,
                "depthwise_separable_out_channel": 16,
                "nemo_conv_channels": 16,
                "audio_token_id": "<|audio|>",
            }
        },
        end="<|im_end|>",
    ),
)
"""The families that read pictures."""
