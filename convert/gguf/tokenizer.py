"""Tokenizers out of GGUF files: byte-level BPE, and SentencePiece BPE rebuilt from its scores."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lineahead.convert.gguf.file import GgufFile
from lineahead.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"
OTHER_TOKENIZER = "Name the original tokenizer's folder with `tokenizer`."
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, kw_only=True)
class ByteLevel:
    """One named way of cutting text before byte-level BPE.

    Attributes:
        words: regular expression of the pieces; None is GPT-2's own.
        digits: whether each digit is a piece.
        nfc: whether text is brought to Unicode form NFC first.
        whole_words: whether a piece that is a token needs no merges.
        bos: whether texts start with the BOS token unless the file says otherwise.
    """

    words: str | None = None
    digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    bos: bool = False


BYTE_LEVEL = {
    "gpt-2": ByteLevel(),
    "smollm": ByteLevel(digits=True),
    "qwen2": ByteLevel(words=_WORDS % "", nfc=True),
    "llama-bpe": ByteLevel(words=_WORDS % "{1,3}", whole_words=True, bos=True),
}


def load_tokenizer(file: GgufFile) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file, with its special tokens and chat template.

    Raises:
        CheckpointError: when the file holds none, or one of an unknown kind.
    """
    tokens = _section(file, "tokens")
    if not isinstance(tokens, list) or not tokens:
        raise CheckpointError(f"{file.path}: no tokenizer in the file", hint=OTHER_TOKENIZER)
    twice = [token for token, count in Counter(tokens).items() if count > 1]
    if twice:
        raise CheckpointError(f"{file.path}: token {twice[0]!r} is there twice", hint=OTHER_TOKENIZER)
    kind = _section(file, "model")
    if kind == "gpt2":
        core, bos = _byte_level(file, tokens)
    elif kind == "llama":
        core, bos = _sentencepiece(file, tokens), True
    else:
        raise CheckpointError(f"{file.path}: unknown tokenizer model {kind!r}", hint=OTHER_TOKENIZER)
    _add_special_tokens(file, core, tokens)
    roles = {
        f"{role}_token": tokens[index]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
        if isinstance(index := _section(file, f"{key}_token_id"), int) and 0 <= index < len(tokens)
    }
    _add_ends(file, core, roles, bos)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=file.need("context_length"),
        clean_up_tokenization_spaces=False,
        chat_template=file.metadata.get("tokenizer.chat_template"),
        **roles,
    )


def _section(file: GgufFile, key: str) -> Any:
    return file.metadata.get(f"tokenizer.ggml.{key}")


def _types(file: GgufFile, tokens: list[str]) -> list[int]:
    types = _section(file, "token_type") or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise CheckpointError(
            f"{file.path}: {len(types)} token types for {len(tokens)} tokens", hint=OTHER_TOKENIZER
        )
    return list(types)


def _byte_level(file: GgufFile, tokens: list[str]) -> tuple[Tokenizer, bool]:
    name = _section(file, "pre")
    if name not in BYTE_LEVEL:
        raise CheckpointError(f"{file.path}: unknown pre-tokenizer {name!r}", hint=OTHER_TOKENIZER)
    cut = BYTE_LEVEL[name]
    # Padding of the embedding to a round size: tokens that no text contains.
    vocabulary = {
        t: i for i, (t, kind) in enumerate(zip(tokens, _types(file, tokens), strict=True)) if kind != UNUSED
    }
    merges = [tuple(merge.split(" ", 1)) for merge in _section(file, "merges") or []]
    try:
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=cut.whole_words)
    except Exception as error:
        raise CheckpointError(f"{file.path}: damaged merges: {error}", hint=OTHER_TOKENIZER) from error
    core = Tokenizer(model)
    if cut.nfc:
        core.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if cut.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if cut.words is not None:
        steps.append(pre_tokenizers.Split(Regex(cut.words), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.words is None))
    core.pre_tokenizer = pre_tokenizers.Sequence(steps)
    core.decoder = decoders.ByteLevel()
    return core, cut.bos


def _sentencepiece(file: GgufFile, tokens: list[str]) -> Tokenizer:
    types, scores = _types(file, tokens), _section(file, "scores") or []
    if len(scores) != len(tokens):
        raise CheckpointError(
            f"{file.path}: {len(scores)} scores for {len(tokens)} tokens", hint=OTHER_TOKENIZER
        )
    unknown = next((t for t, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    core = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[
                (left, right) for _, left, right in sorted(_merges(tokens, types, scores), key=_by_score)
            ],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=BYTE in types,
        )
    )
    prefix = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", SPACE)
    core.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    steps: list[decoders.Decoder] = [
        decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
    ]  # fmt: skip
    core.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return core


def _merges(tokens: list[str], types: list[int], scores: list[float]) -> Iterator[tuple[float, str, str]]:
    """Every way to make a normal token from two others, with the token's score."""
    usable = {
        t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind in (NORMAL, USER_DEFINED)
    }
    for token, kind, score in zip(tokens, types, scores, strict=True):
        if kind != NORMAL or len(token) < 2:
            continue
        cuts = [(token[:k], token[k:]) for k in range(1, len(token))]
        pairs = [pair for pair in cuts if pair[0] in usable and pair[1] in usable]
        for left, right in sorted(pairs, key=lambda pair: (usable[pair[0]], usable[pair[1]])):
            yield score, left, right


def _by_score(merge: tuple[float, str, str]) -> float:
    return -merge[0]


def _add_special_tokens(file: GgufFile, core: Tokenizer, tokens: list[str]) -> None:
    pairs = list(zip(tokens, _types(file, tokens), strict=True))
    core.add_tokens(
        [AddedToken(t, special=False, normalized=False) for t, kind in pairs if kind == USER_DEFINED]
    )
    core.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, kind in pairs if kind in (CONTROL, UNKNOWN)]
    )
    moved = [t for i, (t, kind) in enumerate(pairs) if kind != UNUSED and core.token_to_id(t) != i]
    if moved:
        raise CheckpointError(f"{file.path}: token {moved[0]!r} does not keep its id", hint=OTHER_TOKENIZER)


def _add_ends(file: GgufFile, core: Tokenizer, roles: dict[str, str], bos: bool) -> None:
    first = roles.get("bos_token") if _flag(file, "add_bos_token", bos) else None
    last = roles.get("eos_token") if _flag(file, "add_eos_token", False) else None
    ends = [token for token in (first, last) if token is not None]
    if not ends:
        return
    single = f"{first or ''} $A {last or ''}".strip()
    pair = f"{single} {first or ''} $B:1 {last or ''}".strip()
    core.post_processor = processors.TemplateProcessing(
        single=single.split(),
        pair=pair.split(),
        special_tokens=[(token, core.token_to_id(token)) for token in dict.fromkeys(ends)],
    )


def _flag(file: GgufFile, key: str, default: bool) -> bool:
    value = _section(file, key)
    return default if value is None else bool(value)
