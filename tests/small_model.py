"""A base model with another tokenizer than the embedded one: a random BERT of one layer, over the words of texts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel, BertTokenizerFast, set_seed


def build_small_model(folder: Path, texts: Iterable[str]) -> str:
    """Saves the model in a folder.

    Args:
        folder: Where to save it.
        texts: Their words become its vocabulary, a few hundred token ids.

    Returns:
        The path to load it from.
    """
    words = {word.strip(".,'\"").lower() for text in texts for word in text.split()}
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words - {""})]
    BertTokenizerFast(vocab={token: number for number, token in enumerate(tokens)}).save_pretrained(folder / "bert")
    set_seed(0)
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    pooling = Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder / "model"))
    return str(folder / "model")
