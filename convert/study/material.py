"""What cells of a study share: tokenizers made from its text, and token streams; kept on disk."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lineahead.convert.training.data import Tokens, load_tokens, save_tokens, text_tokens
from lineahead.convert.training.labelled import read_labelled
from lineahead.convert.training.text import dataset_documents, documents, expand
from lineahead.recipes.files import replacing
from lineahead.recipes.study.schema import LabelTask, TextTask

PAD, BEGIN, END = "<pad>", "<s>", "</s>"
_TOKENIZER_CHARACTERS = 10_000_000


def made_tokenizer(task: TextTask | LabelTask, vocabulary: int, folder: Path) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer trained on a task's training text, kept in `folder` for the next cell.

    Texts are put between a begin and an end token when special tokens are asked for: an encoder classifies
    from the first, a decoder from the last.

    Raises:
        InputError: when the text cannot be read.
    """
    text = task.train if isinstance(task, LabelTask) else task.data.model_dump_json()
    path = folder / f"tokenizer-{_key(text, vocabulary)}.json"
    if not path.is_file():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, BEGIN, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_some(_texts(task)), trainer)
        ends = [(token, tokenizer.token_to_id(token)) for token in (BEGIN, END)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A {END}", special_tokens=ends
        )
        with replacing(path) as temporary:
            tokenizer.save(str(temporary))
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(path)), pad_token=PAD, bos_token=BEGIN, eos_token=END
    )


def training_tokens(
    task: TextTask, tokenizer: PreTrainedTokenizerBase, count: int, folder: Path, seed: int
) -> Tokens:
    """`count` tokens of a task's training text; those in `folder` if they were made before.

    Raises:
        InputError: when the text cannot be read.
    """
    vocabulary = sorted(tokenizer.get_vocab().items())
    path = folder / f"tokens-{_key(task.data.model_dump_json(), vocabulary, count, seed)}.npz"
    if not path.is_file():
        save_tokens(path, text_tokens(task.data, tokenizer, count, seed))
    return load_tokens(path)


def _texts(task: TextTask | LabelTask) -> Iterator[str]:
    if isinstance(task, LabelTask):
        yield from read_labelled(Path(task.train)).texts
    elif task.data.dataset is not None:
        yield from dataset_documents(task.data.dataset, 0)
    else:
        for path in expand(task.data.files):
            yield from documents(path)


def _some(texts: Iterator[str]) -> Iterator[str]:
    left = _TOKENIZER_CHARACTERS
    for text in texts:
        if left <= 0:
            return
        left -= len(text)
        yield text


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
