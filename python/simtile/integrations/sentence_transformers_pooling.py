"""sentence-transformers' `Pooling` on simtile's kernels, with `Normalize` fused into it.

``from simtile.integrations.sentence_transformers_pooling import Pooling`` in place of the import
from ``sentence_transformers.sentence_transformer.modules``, or for a model that is there already::

    fuse_pooling(model)

which replaces its pooling and a `Normalize` after it. The class is a subclass of the original with
the same arguments and one more, ``normalize``. It has all modes and their combinations, prompts
that are left out and inputs without padding. Differences:

* tokens are read once, and padding is not: NaN there changes nothing;
* the result is rounded to the element type once, after it is normalised;
* a row without tokens is 0, where "cls" gives padding and "max" -inf.

What other modules put beside the tokens ("cls_token_embeddings", "token_weights_sum") is pooled by
the original's code.
"""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling as _Pooling
from torch import Tensor

from simtile.pool import pool

__all__ = ["Pooling", "fuse_pooling"]

_HOW = {"cls": "cls", "max": "max", "mean": "mean", "lasttoken": "last"}
# Of which other modules know more than the mask does.
_FOREIGN = ("cls_token_embeddings", "token_weights_sum")


class Pooling(_Pooling):
    """The original, by :func:`simtile.pool`.

    Parameters
    ----------
    embedding_dimension : int
    pooling_mode : str or tuple of str
        "cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", or several,
        whose vectors are put one after the other.
    include_prompt : bool
    normalize : bool
        Divide the result by its norm, as a `Normalize` after this module would.

    Raises
    ------
    ValueError
        A mode is unknown, as in the original.
    """

    config_keys = [*_Pooling.config_keys, "normalize"]  # noqa: RUF012 - as the original has them

    def __init__(
        self,
        embedding_dimension: int,
        pooling_mode: Any = "mean",
        include_prompt: bool = True,
        normalize: bool = False,
    ) -> None:
        super().__init__(embedding_dimension, pooling_mode, include_prompt)
        self.normalize = normalize

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features = super().forward(features, **kwargs)
        if self.normalize and not self._is_fused(features):
            features = Normalize()(features)
        return features

    def _is_fused(self, features: dict[str, Any]) -> bool:
        """Whether the kernel has normalised already: what it pooled is the whole result."""
        return isinstance(self.pooling_mode, str) and not any(x in features for x in _FOREIGN)

    def _forward_padded(
        self,
        token_embeddings: Tensor,
        attention_mask: Tensor,
        features: dict[str, Any],
        prompt_length: int | None = None,
    ) -> list[Tensor]:
        if any(name in features for name in _FOREIGN):
            return super()._forward_padded(
                token_embeddings, attention_mask, features, prompt_length=prompt_length
            )
        weights = None
        if "weightedmean" in self._modes():  # positions count from the first token of the prompt
            first = attention_mask.int().argmax(1, keepdim=True)
            place = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
            weights = (place - first).to(torch.float32)
        if prompt_length:
            attention_mask = self._exclude_prompt_from_mask(attention_mask, prompt_length)
        counts = attention_mask.sum(1)
        return [
            self._pooled(mode, token_embeddings, attention_mask, None, weights, counts)
            for mode in self._modes()
        ]

    def _forward_flattened(
        self,
        token_embeddings: Tensor,
        features: dict[str, Any],
        prompt_length: int | None = None,
    ) -> list[Tensor]:
        if any(name in features for name in _FOREIGN):
            return super()._forward_flattened(
                token_embeddings, features, prompt_length=prompt_length
            )
        tokens, offsets = token_embeddings.squeeze(0), features["cu_seq_lens_q"].long()
        lengths = offsets.diff()
        place = torch.arange(tokens.shape[0], device=tokens.device)
        place = place - torch.repeat_interleave(offsets[:-1], lengths, output_size=len(tokens))
        mask, counts = None, lengths
        if prompt_length:
            mask = place >= prompt_length
            counts = (lengths - prompt_length).clamp(min=0)
        weights = (place + 1).to(torch.float32) if "weightedmean" in self._modes() else None
        return [
            self._pooled(mode, tokens, mask, offsets, weights, counts) for mode in self._modes()
        ]

    def _modes(self) -> tuple[str, ...]:
        modes = self.pooling_mode
        return (modes,) if isinstance(modes, str) else tuple(modes)

    def _pooled(
        self,
        mode: str,
        tokens: Tensor,
        mask: Tensor | None,
        offsets: Tensor | None,
        weights: Tensor | None,
        counts: Tensor,
    ) -> Tensor:
        alone = isinstance(self.pooling_mode, str)
        vectors: Tensor = pool(
            tokens,
            mask,
            _HOW.get(mode, "mean"),  # type: ignore[arg-type]
            offsets=offsets,
            weights=weights if mode == "weightedmean" else None,
            normalize=self.normalize and alone,
        )
        if mode == "mean_sqrt_len_tokens" and not (self.normalize and alone):
            vectors = (vectors * counts.to(torch.float32).sqrt()[:, None]).to(tokens.dtype)
        return vectors


def fuse_pooling(model: Any) -> Any:
    """The model, whose `Pooling` is this module's and whose `Normalize` after it has gone into it.

    Parameters
    ----------
    model : SentenceTransformer
        Changed in place, and returned. One without a `Pooling` is an error.

    Raises
    ------
    ValueError
        The model has no `Pooling` of sentence-transformers.
    """
    names = list(model._modules)
    found = [name for name in names if type(model._modules[name]) is _Pooling]
    if not found:
        kinds = ", ".join(type(module).__name__ for module in model._modules.values())
        raise ValueError(
            f"model: found the modules {kinds}, expected sentence-transformers' Pooling"
        )
    for name in found:
        old = model._modules[name]
        after = names[names.index(name) + 1 : names.index(name) + 2]
        normalize = bool(after) and _normalizes(model._modules[after[0]])
        new = Pooling(old.embedding_dimension, old.pooling_mode, old.include_prompt, normalize)
        model._modules[name] = new.train(old.training)
        if normalize:
            del model._modules[after[0]]
    return model


def _normalizes(module: Any) -> bool:
    names = getattr(module, "module_input_name", ""), getattr(module, "module_output_name", "")
    return type(module) is Normalize and names == ("sentence_embedding", "sentence_embedding")
