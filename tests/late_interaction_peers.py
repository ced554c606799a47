"""What PyLate 1.6 and colpali-engine 0.3.18 compute on the CPU, in torch, for tests.

Both need other versions than this project's, or much besides, and are no development requirements;
these are their formulas. Where one is installed, its own functions are tested beside as well.
"""

import torch


def pylate_scores(queries, documents, query_mask=None, document_mask=None):
    """Masks multiply the similarities of all pairs of tokens."""
    similarities = torch.einsum("qid,njd->qnij", queries, documents)
    if query_mask is not None:
        similarities = similarities * query_mask[:, None, :, None]
    if document_mask is not None:
        similarities = similarities * document_mask[None, :, None, :]
    return similarities.max(-1).values.sum(-1)


def pylate_kd_scores(queries, documents, query_mask=None, document_mask=None):
    rows = [
        pylate_scores(
            queries[q : q + 1],
            documents[q],
            None if query_mask is None else query_mask[q : q + 1],
            None if document_mask is None else document_mask[q],
        )[0]
        for q in range(len(queries))
    ]
    return torch.stack(rows)


def pylate_pairwise(queries, documents):
    return torch.stack(
        [(q @ d.T).max(-1).values.sum() for q, d in zip(queries, documents, strict=True)]
    )


class PylateXTR:
    """Similarities of all queries to the tokens of all documents, all but the k best set to 0."""

    def __init__(self, k, chunk=None):
        self.k = k

    def __call__(self, queries, documents, queries_mask=None, documents_mask=None):
        count, length, dim = queries.shape
        flat = documents.flatten(0, 1)
        similarities = queries.reshape(-1, dim) @ flat.reshape(-1, dim).T
        if documents_mask is not None:
            lowest = torch.finfo(similarities.dtype).min
            similarities = similarities.masked_fill(~documents_mask.bool().reshape(1, -1), lowest)
        kept = torch.zeros_like(similarities, dtype=torch.bool)
        kept.scatter_(1, similarities.topk(self.k, dim=1).indices, True)
        best = (similarities * kept).view(count, length, len(flat), -1).max(-1).values
        if queries_mask is not None:
            best = best * queries_mask[..., None]
        positive = (best > 0).float().sum(1).clamp(min=1e-3)
        return (best.sum(1) / positive).float()


class PylateXTRKD(PylateXTR):
    """Of each query the scores with its own documents."""

    def __call__(self, queries, documents, **masks):
        scores = super().__call__(queries, documents, **masks)
        own = [scores[q].view(documents.shape[:2])[q] for q in range(len(queries))]
        return torch.stack(own)


def colpali_scores(queries, passages, batch_size=128):
    """Lists are padded with zeros, passages to the longest of a batch."""
    rows = []
    for query in queries:
        parts = []
        for start in range(0, len(passages), batch_size):
            some = list(passages[start : start + batch_size])
            padded = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
            parts.append((query @ padded.mT).amax(-1).sum(-1))
        rows.append(torch.cat(parts))
    return torch.stack(rows).float()
