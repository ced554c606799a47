"""A SentenceTransformer of word vectors, made in a moment, and datasets of its words."""

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

WORDS = [f"w{i}" for i in range(40)]


def static_model(seed=0, dim=12, similarity="cosine"):
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate([*WORDS, "?"])}, "?"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.random.default_rng(seed).standard_normal((len(WORDS) + 1, dim))
    module = StaticEmbedding(tokenizer, embedding_weights=weights.astype(np.float32))
    return SentenceTransformer(modules=[module], similarity_fn_name=similarity, device="cpu")


def texts(rng, count):
    """Different sets of words each: no two have the same vector."""
    found = {}
    while len(found) < count:
        words = rng.choice(len(WORDS), int(rng.integers(2, 6)), replace=False)
        found[" ".join(WORDS[i] for i in sorted(words))] = None
    return list(found)


def pairs(seed, rows, queries, documents):
    """A dataset of pairs, of so many different queries and documents at most."""
    rng = np.random.default_rng(seed)
    every = texts(rng, queries + documents)
    anchors = [every[i] for i in rng.integers(0, queries, rows)]
    positives = [every[queries + i] for i in rng.integers(0, documents, rows)]
    return Dataset.from_dict({"query": anchors, "answer": positives})


class WordScores:
    """A cross-encoder: a pair's score depends on its texts alone."""

    def __init__(self, seed=0):
        self._weights = np.random.default_rng(seed).standard_normal(2 * len(WORDS))
        self.calls = 0

    def predict(self, pairs, batch_size=32, convert_to_tensor=False, pool=None):
        assert convert_to_tensor
        self.calls += 1
        scores = [
            sum(self._weights[WORDS.index(word)] for word in query.split())
            * sum(self._weights[len(WORDS) + WORDS.index(word)] for word in text.split())
            for query, text in pairs
        ]
        return torch.tensor(scores, dtype=torch.float32)
