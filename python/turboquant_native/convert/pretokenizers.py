"""How the BPE families cut text into words before merging, by the name that GGUF files give (`tokenizer.ggml.pre`).

The expressions are those of the models' own tokenizer.json files.
"""

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

from ..common.errors import ConvertError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAMEL = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_CAMEL_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ASCII_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


@dataclass(frozen=True)
class PreTokenizer:
    """One family.

    Attributes:
        splits: expressions whose matches stand alone, applied one after the other.
        digits: every digit stands alone.
        gpt2: GPT-2's own expression cuts what is left.
        whole_words: a word that is a token is taken whole, whatever the merges say.
        adds_bos: what llama.cpp assumes where the file does not say.
        nfc: text is normalized to NFC first.
    """

    splits: tuple[str, ...] = ()
    digits: bool = False
    gpt2: bool = False
    whole_words: bool = False
    adds_bos: bool = False
    nfc: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The `tokenizers` object."""
        steps: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Split(Regex(split), "isolated") for split in self.splits]
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2))
        return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)

    def normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.nfc else None


def _words(digits: str) -> str:
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|{_TAIL}"


_GPT2 = PreTokenizer(gpt2=True)
_CODE = PreTokenizer(digits=True, gpt2=True)
_CL100K = PreTokenizer(splits=(_words(r"\p{N}{1,3}"),))
_LLAMA3 = PreTokenizer(splits=(_words(r"\p{N}{1,3}"),), whole_words=True, adds_bos=True)
_QWEN2 = PreTokenizer(splits=(_words(r"\p{N}"),), nfc=True)
_TEKKEN = PreTokenizer(splits=(rf"{_CAMEL[0]}|{_CAMEL[1]}|\p{{N}}|{_CAMEL_TAIL}",), whole_words=True, adds_bos=True)
_O200K = PreTokenizer(splits=(rf"{_CAMEL[0]}{_CONTRACTIONS}?|{_CAMEL[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_CAMEL_TAIL}",))
_DEEPSEEK_LLM = PreTokenizer(
    splits=(r"[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$", _CJK),
    digits=True,
)
_DEEPSEEK_CODER = PreTokenizer(splits=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK), digits=True)
_DEEPSEEK_V3 = PreTokenizer(
    splits=(
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "olmo": _GPT2,
    "mpt": _GPT2,
    "smollm": _CODE,
    "starcoder": _CODE,
    "refact": _CODE,
    "command-r": _CODE,
    "codeshell": _CODE,
    "dbrx": _CL100K,
    "smaug-bpe": _CL100K,
    "chatglm-bpe": _CL100K,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "megrez": _QWEN2,
    "stablelm2": _QWEN2,
    "tekken": _TEKKEN,
    "gpt-4o": _O200K,
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-coder": _DEEPSEEK_CODER,
    "deepseek-v3": _DEEPSEEK_V3,
}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The family of that name; ConvertError lists the known ones."""
    if name not in PRE_TOKENIZERS:
        raise ConvertError(f"pre-tokenizer {name!r} is not known (known: {', '.join(PRE_TOKENIZERS)})")
    return PRE_TOKENIZERS[name]
