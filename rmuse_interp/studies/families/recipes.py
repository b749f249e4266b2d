"""Recipes of the families of text alone, and the list of all."""

from typing import Final

from rmuse_interp.studies.families.pictured import PICTURED
from rmuse_interp.studies.families.recipe import (
    CHATML,
    GEMMA,
    GEMMA_TURNS,
    IM,
    LLAMA,
    LLAMA_TURNS,
    MISTRAL,
    TEXT,
    TULU,
    WITH_HEADS,
    Recipe,
)

RECIPES: Final[tuple[Recipe, ...]] = (
    *PICTURED,
    Recipe("Llama", "llama", TEXT, LLAMA, LLAMA_TURNS, end="<|eot_id|>"),
    Recipe("Qwen2", "qwen2", TEXT, CHATML, IM, end="<|im_end|>"),
    Recipe("Qwen3", "qwen3", WITH_HEADS, CHATML, IM, end="<|im_end|>"),
    Recipe(
        "Gemma 2",
        "gemma2",
        {**WITH_HEADS, "query_pre_attn_scalar": 8, "sliding_window": 64},
        GEMMA,
        GEMMA_TURNS,
        end="<end_of_turn>",
    ),
    Recipe(
        "Gemma 3 (text)",
        "gemma3_text",
        {**WITH_HEADS, "query_pre_attn_scalar": 8, "sliding_window": 64, "sliding_window_pattern": 2},
        GEMMA,
        GEMMA_TURNS,
        end="<end_of_turn>",
    ),
    Recipe("Mistral", "mistral", TEXT, MISTRAL, ("[INST]", "[/INST]")),
    Recipe("OLMo2", "olmo2", TEXT, TULU),
    Recipe(
        "Granite",
        "granite",
        {**TEXT, "residual_multiplier": 0.22, "embedding_multiplier": 12.0, "logits_scaling": 4.0},
        CHATML.replace("<|im_start|>", "<|start_of_role|>").replace("<|im_end|>", "<|end_of_text|>"),
        ("<|start_of_role|>", "<|end_of_text|>"),
        end="<|end_of_text|>",
    ),
    Recipe(
        "GPT-2",
        "gpt2",
        {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 1024, "tie_word_embeddings": False},
    ),
    Recipe(
        "Pythia",
        "gpt_neox",
        {**{k: v for k, v in TEXT.items() if k != "num_key_value_heads"}, "use_parallel_residual": True},
    ),
)
"""The 15 families with pictures, then the 10 of text alone."""
