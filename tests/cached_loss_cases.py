"""Encoders for the tests of the cached losses, and the comparison with the uncached loss."""

import copy

import torch
from torch import nn

import simtile

WIDTH = 12


class Tokens(nn.Module):
    """Mean-pooled tokens of a padded batch, as a dict."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.table = nn.Embedding(50, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, features):
        mask = features["attention_mask"].unsqueeze(-1)
        words = self.dropout(self.table(features["input_ids"]))
        pooled = (words * mask).sum(1) / mask.sum(1).clamp_min(1)
        return {"sentence_embedding": self.head(pooled), **features}


class Words(nn.Module):
    """Strings."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(64, 7)

    def forward(self, texts):
        assert all(isinstance(text, str) for text in texts)
        return torch.stack(
            [self.table(torch.tensor([ord(c) % 64 for c in text])).mean(0) for text in texts]
        )


class Bag(nn.Module):
    """Static embeddings: flat tokens and offsets."""

    def __init__(self, sparse=False):
        super().__init__()
        self.table = nn.EmbeddingBag(50, 7, mode="mean", sparse=sparse)

    def forward(self, features):
        features["sentence_embedding"] = self.table(features["input_ids"], features["offsets"])
        return features


def mlp(dropout=0.0, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh(), nn.Dropout(dropout), nn.Linear(WIDTH, 7))


def gradients(module):
    return {
        name: None if p.grad is None else p.grad.to_dense() for name, p in module.named_parameters()
    }


def assert_as_uncached(make, inputs, *, mini_batch_size=3, loss=None, **arguments):
    """Loss and gradients of CachedLoss and of all inputs encoded at once."""
    torch.manual_seed(1)
    encoder = make()
    plain = copy.deepcopy(encoder)
    loss = simtile.nn.InfoNCE(0.2, learnable_temperature=True) if loss is None else loss
    plain_loss = copy.deepcopy(loss)
    cached = simtile.nn.CachedLoss(encoder, loss, mini_batch_size=mini_batch_size)
    ours = cached(*inputs, **arguments)
    ours.backward()
    embeddings = [plain(dict(x) if isinstance(x, dict) else x) for x in inputs]
    embeddings = [x["sentence_embedding"] if isinstance(x, dict) else x for x in embeddings]
    expected = plain_loss(*cached._arranged(embeddings), **arguments)
    expected.backward()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients(encoder), gradients(plain), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients(loss), gradients(plain_loss), rtol=1e-4, atol=1e-6)
    assert all(g is not None and g.abs().sum() > 0 for g in gradients(encoder).values())
    return encoder
