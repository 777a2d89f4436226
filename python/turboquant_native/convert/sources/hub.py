"""Download of a model's folder from the Hugging Face hub (HF_ENDPOINT chooses another)."""

from pathlib import Path

from ...common.errors import ConvertError

_FILES = [
    "model*.safetensors",  # not consolidated.safetensors, the same weights once more
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "*tokens*.json",
    "modules.json",
    "*_Pooling/config.json",
    "additional_chat_templates/*",
]


def download(repo_id: str, cache_dir: str | None = None, revision: str | None = None) -> Path:
    """The snapshot folder of a repository, only with the files that a conversion reads; ConvertError says why it cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, cache_dir=cache_dir, allow_patterns=_FILES))
    except Exception as error:  # the hub, its HTTP client and the file system each have their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConvertError(f"{repo_id}: neither a file here nor a model that can be downloaded: {reason}") from error
