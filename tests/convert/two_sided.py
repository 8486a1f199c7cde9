"""Tiny encoders and encoder-decoders with letters as tokens, as checkpoint folders."""

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

LETTERS = "abcdefghijklmnopqrstuvwxyz .\n"
TOKENS = ["<pad>", "</s>", "<unk>", *LETTERS]
SPECIAL = {"vocab_size": len(TOKENS), "pad_token_id": 0, "eos_token_id": 1}
ENCODER = {
    **SPECIAL, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 128, "initializer_range": 0.2, "num_labels": 3,
}  # fmt: skip
BOTH = {**SPECIAL, "decoder_start_token_id": 0}
T5 = {**BOTH, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BART = {
    **BOTH, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "bos_token_id": 2,
    "max_position_embeddings": 128, "init_std": 0.3, "forced_eos_token_id": None,
}  # fmt: skip
CONFIGS = {"Bert": ENCODER, "Roberta": ENCODER, "T5": T5, "Bart": BART}


def tokenizer():
    core = Tokenizer(models.WordLevel({text: i for i, text in enumerate(TOKENS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def save(folder, family, head, **changes):
    """A random model of ``<family><head>`` in `folder`."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**CONFIGS[family], **changes})
    getattr(transformers, f"{family}{head}")(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
