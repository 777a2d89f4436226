"""Which files of a Hugging Face folder a conversion may read."""

from pathlib import Path

# Globs; the weights and what describes them.
FOLDER_FILES = (
    "*.safetensors", "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json", "modules.json",
    "*_Pooling/config.json", "additional_chat_templates/*",
)  # fmt: skip


def model_files(folder: Path) -> list[Path]:
    """Those that are there, sorted."""
    return sorted(path for pattern in FOLDER_FILES for path in folder.glob(pattern))
