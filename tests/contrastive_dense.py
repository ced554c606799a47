"""The contrastive losses as whole matrices in torch, float64, differentiated by autograd.

A second definition, written from the first one's description and sharing no code with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def products(a, b):
    """a bᵀ in which equal rows give equal numbers, as a matrix product need not."""
    return (a[:, None, :] * b[None, :, :]).sum(-1)


def tensor(x):
    return None if x is None else torch.from_numpy(x)


def blocks(case):
    """For each direction: names of anchors and candidates, [N, C] positives, [N, C] candidates."""
    n, m = len(case["queries"]), len(case["documents"])
    k = case["negatives"].shape[1] if case["negatives"] is not None else 0
    scope = case["negatives_scope"]
    own = tensor(case["own"])
    eye = torch.eye(n, dtype=torch.bool)
    pair = F.one_hot(own, m).bool()
    none, every = torch.zeros(n, n * k, dtype=torch.bool), torch.ones(n, n * k, dtype=torch.bool)
    mine = eye.repeat_interleave(k, dim=1)
    for_queries = mine if scope == "own" else every
    for_documents = ~mine if scope == "all" else none
    documents = torch.ones(n, m, dtype=torch.bool)
    return {
        "query_to_doc": ("q", "dn", torch.cat([pair, none], 1), [documents, for_queries]),
        "query_to_query": ("q", "q", torch.zeros_like(eye), [~eye]),
        "doc_to_query": ("p", "q", eye, [torch.ones_like(eye)]),
        "doc_to_doc": (
            "p",
            "dn",
            torch.cat([torch.zeros_like(pair), none], 1),
            [~pair, for_documents],
        ),
    }


def equal_ids(case, anchors, candidates):
    n, m = len(case["queries"]), len(case["documents"])
    k = case["negatives"].shape[1] if case["negatives"] is not None else 0
    columns = n if candidates == "q" else m + n * k
    if case["query_ids"] is None:
        return torch.zeros(n, columns, dtype=torch.bool)
    q, d = tensor(case["query_ids"]), tensor(case["document_ids"])
    rows = q if anchors == "q" else d[tensor(case["own"])]
    found = rows[:, None] == (q if candidates == "q" else d)[None, :]
    return F.pad(found, (0, columns - found.shape[1]))


def similarities(case, queries, documents, negatives, normalize):
    """[N, C] similarities of every direction, by anchors and candidates."""
    if normalize:
        queries, documents, negatives = (
            None if x is None else F.normalize(x, dim=-1, eps=1e-12)
            for x in (queries, documents, negatives)
        )
    flat = documents
    if negatives is not None:
        flat = torch.cat([documents, negatives.flatten(0, 1)])
    vectors = {"q": queries, "p": documents[tensor(case["own"])], "dn": flat}
    return {
        a + b: products(vectors[a], vectors[b])
        for a, b in (("q", "dn"), ("q", "q"), ("p", "q"), ("p", "dn"))
    }


def one_width(case, queries, documents, negatives):
    """For each direction: similarities, positives, negatives, those left by labels, by margin."""
    options = case.options
    sims = similarities(case, queries, documents, negatives, options.normalize)
    rows, own = torch.arange(len(queries)), tensor(case["own"])
    margin = options.false_negative_margin
    guide = None
    if options.guide is not None:
        vectors = [*map(tensor, case.guide)]
        if len(vectors) == 2:
            vectors.append(None)
        guide = similarities(case, *vectors, True)
        limit = guide["qdn"][rows, own][:, None]
        slack = options.guide_margin * (
            limit.abs() if options.guide_margin_strategy == "relative" else 1.0
        )
        limit = limit - slack
    result = {}
    for name, (a, c, positive, candidates) in blocks(case).items():
        there = torch.cat(candidates, 1) & ~positive
        similarity = sims[a + c]
        kept = there & ~equal_ids(case, a, c)
        if guide is not None:
            kept = kept & ~(guide[a + c] > limit)
        fine = kept
        if margin is not None:
            constant = sims["qdn"][rows, own].detach()[:, None]
            fine = kept & ~(similarity.detach() > constant - margin)
        result[name] = (similarity, positive, there, kept, fine)
    return result


def hardness(case, positive):
    """Which logits of query_to_doc hardness adds to."""
    n, m = len(case["queries"]), len(case["documents"])
    mode = case["hardness"]
    if mode is None:
        return torch.zeros_like(positive)
    k = (positive.shape[1] - m) // n
    own_negative = F.pad(torch.eye(n, dtype=torch.bool).repeat_interleave(k, 1), (m, 0))
    return {
        "in_batch_negatives": ~positive & ~own_negative,
        "hard_negatives": own_negative,
        "all_negatives": ~positive,
    }[mode]


def losses(case, queries, documents, negatives, temperature, bias, sigmoid=False):
    """[N] losses of tensors."""
    options = case.options
    dims = options.matryoshka_dims or [case.dimensions]
    weights = options.matryoshka_weights or [1.0] * len(dims)
    total = 0.0
    for width, weight in zip(dims, weights, strict=True):
        cut = [None if x is None else x[..., :width] for x in (queries, documents, negatives)]
        total = total + weight / sum(weights) * width_losses(case, *cut, temperature, bias, sigmoid)
    return total


def width_losses(case, queries, documents, negatives, temperature, bias, sigmoid):
    options = case.options
    parts = {}
    for name, (similarity, positive, _, _, kept) in one_width(
        case, queries, documents, negatives
    ).items():
        logits = similarity / temperature + bias
        if name == "query_to_doc":
            hard = hardness(case, positive)
            logits = logits + torch.where(
                hard, options.hardness_strength * similarity.detach(), 0.0
            )
            correct = logits[positive]
            if sigmoid:
                signs = positive.double() * 2 - 1
                return -torch.where(positive | kept, F.logsigmoid(signs * logits), 0.0).sum(1)
        parts[name] = logits.masked_fill(~(positive | kept), -torch.inf)
    chosen = [parts[name] for name in options.directions]
    if options.partition == "joint":
        return torch.cat(chosen, 1).logsumexp(1) - correct
    return sum(part.logsumexp(1) for part in chosen) / len(chosen) - correct


def run(case, sigmoid=False):
    """Losses and the gradients of their weighted sum, as the references give them."""
    leaves = [
        None if x is None else torch.from_numpy(x.copy()).requires_grad_() for x in case.inputs
    ]
    scalars = [
        torch.tensor(case[name], dtype=torch.float64, requires_grad=True)
        for name in ("temperature", "bias")
    ]
    rows = losses(case, *leaves, *scalars, sigmoid=sigmoid)
    weights = case["row_weights"]
    (rows.sum() if weights is None else rows @ torch.from_numpy(weights)).backward()
    grads = [
        None if x is None else torch.zeros_like(x) if x.grad is None else x.grad
        for x in [*leaves, *scalars]
    ]
    return [rows.detach().numpy(), *(None if g is None else g.numpy() for g in grads)]


def statistics(case):
    width = max(case.options.matryoshka_dims or [case.dimensions])
    cut = [None if x is None else tensor(x)[..., :width] for x in case.inputs]
    chosen = one_width(case, *cut)
    similarity, positive = chosen["query_to_doc"][:2]
    correct = similarity[positive]
    groups = [[d] for d in case["directions"]]
    if case["partition"] == "joint":
        groups = [list(case["directions"])]
    kept = torch.cat([chosen[d][0][chosen[d][4]] for d in case["directions"]])
    there, left = (sum(int(chosen[d][k].sum()) for d in case["directions"]) for k in (2, 4))
    beats = []
    for group in groups:
        best = torch.cat([chosen[d][0].masked_fill(~chosen[d][3], -torch.inf) for d in group], 1)
        beats.append((correct > best.max(1).values).double())
    nothing = float("nan")
    return [
        float(correct.mean()),
        float(kept.mean()) if len(kept) else nothing,
        float(torch.cat(beats).mean()),
        (there - left) / there if there else nothing,
    ]
