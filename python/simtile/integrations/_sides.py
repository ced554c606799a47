"""Queries and documents as sentence-transformers reads them, for `simtile.maxsim`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from simtile.integrations._late_interaction import (
    Matrices,
    Tensor,
    lengths_of,
    moved,
    needs_gradients,
    nonzero_rows,
    own_masks,
    to_mask,
    to_matrices,
    torch,
    weighted,
    weights_of,
)

EMPTY_DOCUMENT = -1e9  # its score
CHUNK_ELEMENTS = 100_000_000  # of documents that are moved to another device at a time


@dataclass(frozen=True)
class Side:
    """Queries or documents with their mask."""

    matrices: Matrices
    mask: Tensor | None  # bool [B, longest]
    counts: Tensor | None = None  # float32 [B], of queries: what a mean is over

    def __len__(self) -> int:
        return len(self.matrices)

    def __getitem__(self, places: slice) -> Side:
        mask = None if self.mask is None else self.mask[places]
        if isinstance(self.matrices, list) and mask is not None:
            mask = mask[:, : max(lengths_of(self.matrices[places]), default=0)]
        return Side(self.matrices[places], mask)

    def to(self, device: torch.device) -> Side:
        mask = None if self.mask is None else self.mask.to(device)
        return Side(moved(self.matrices, device), mask, self.counts)

    @property
    def masks(self) -> Tensor | list[Tensor] | None:
        """The mask as `simtile.maxsim` takes it."""
        if self.mask is None or isinstance(self.matrices, Tensor):
            return self.mask
        return own_masks(self.mask, lengths_of(self.matrices))

    def mean(self, scores: Tensor) -> Tensor:
        """Scores [Q, ...] of these queries, divided by their numbers of tokens."""
        assert self.counts is not None
        counts = self.counts.to(scores.device)
        return scores / counts.view(-1, *[1] * (scores.ndim - 1))


def queries_of(name: str, x: Any, mask: Any, mask_name: str) -> Side:
    """Queries; without a mask the rows of zeros of a batch are no tokens."""
    side = weighted_queries(name, x, mask, mask_name)
    if side.mask is not None:
        return Side(side.matrices, side.mask, _counts(side.mask))
    if isinstance(side.matrices, Tensor):
        there = nonzero_rows(side.matrices)
        return Side(side.matrices, there, _counts(there))
    lengths = torch.tensor(lengths_of(side.matrices), dtype=torch.float32)
    return Side(side.matrices, None, lengths.clamp(min=1))


def weighted_queries(name: str, x: Any, mask: Any, mask_name: str) -> Side:
    """Queries, multiplied by what a mask has besides 0 and 1, and so what they score."""
    matrices = to_matrices(name, x)
    lengths = lengths_of(matrices)
    given = to_mask(mask_name, mask, len(lengths), max(lengths, default=0))
    if given is None:
        return Side(matrices, None)
    weights = weights_of(given)
    if weights is not None:
        if bool((weights < 0).any()):
            raise ValueError(
                f"{mask_name}: found a negative weight in {list(weights.shape)}, expected 0, 1 or "
                "larger: the largest similarity would become the smallest"
            )
        if isinstance(matrices, Tensor):
            matrices = weighted(matrices, weights)
        else:
            own = own_masks(weights, lengths)
            matrices = [weighted(rows, w) for rows, w in zip(matrices, own, strict=True)]
    return Side(matrices, given.bool())


def documents_of(name: str, x: Any, mask: Any, mask_name: str) -> Side:
    """Documents; a mask must not have tokens beyond the end of one of a list."""
    matrices = to_matrices(name, x)
    lengths = lengths_of(matrices)
    given = to_mask(mask_name, mask, len(lengths), max(lengths, default=0))
    if given is None:
        return Side(matrices, None)
    there = given.bool()
    if isinstance(matrices, list):
        for i, (row, length) in enumerate(zip(there, lengths, strict=True)):
            if bool(row[length:].any()):
                raise ValueError(
                    f"{mask_name}: found tokens of document {i} beyond its {length}, expected 0 "
                    "there: rows that pad a list are no tokens"
                )
    return Side(matrices, there)


def as_scored(documents: Side, queries: Side) -> tuple[Side, Literal["score", "pad"]]:
    """The documents, and what `simtile.maxsim` shall do with rows of zeros.

    It finds those itself, but on both sides: where the queries' could pass on gradients, those of
    the documents are masked here.
    """
    if documents.mask is not None or isinstance(documents.matrices, list):
        return documents, "score"
    if needs_gradients(documents.matrices, queries.matrices):
        return Side(documents.matrices, nonzero_rows(documents.matrices)), "score"
    return documents, "pad"


def parts_of(
    documents: Side, device: str | torch.device | None, elements: int | None
) -> Iterator[Side]:
    """All documents at once, or with a device of their own so many that their padded elements are
    no more than `elements`, or one."""
    if device is None:
        yield documents
        return
    limit = CHUNK_ELEMENTS if elements is None else elements
    lengths = lengths_of(documents.matrices)
    start, longest = 0, 0
    for end, (length, matrix) in enumerate(zip(lengths, documents.matrices, strict=True)):
        longest = max(longest, length)
        if end > start and (end + 1 - start) * longest * matrix.shape[-1] > limit:
            yield documents[start:end]
            start, longest = end, length
    yield documents[start:]


def _counts(there: Tensor) -> Tensor:
    return there.sum(-1).clamp(min=1).float()
