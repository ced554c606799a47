"""One rank of tests/test_gathered.py: both libraries' losses over all ranks, written down.

python gathered_worker.py RANK RANKS DIRECTORY
"""

import datetime
import importlib
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from contrastive_cases import Case
from sentence_transformers import util
from sentence_transformers.multi_vector_encoder import losses as multi_vector_peer
from sentence_transformers.sentence_transformer import losses as peer
from test_contrastive_peers import Encoder, columns
from test_open_clip import PEERS
from torch.distributed.nn.functional import all_gather

from simtile.integrations import open_clip
from simtile.integrations import sentence_transformers_losses as ours
from simtile.integrations import sentence_transformers_multivector_losses as multi_vector

ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
RANKING = {
    "plain": {"negatives_per_query": 2},
    "dot products": {"normalize": False, "matryoshka": None},
    "documents": {"directions": ("query_to_doc", "doc_to_doc"), "negatives_per_query": 1},
    "symmetric": {
        "directions": ("query_to_doc", "doc_to_query"),
        "partition": "per_direction",
        "negatives_per_query": 1,
        "hardness": "all_negatives",
    },
    "joint": {"directions": ("query_to_doc", "doc_to_query")},
    "queries": {"directions": ("query_to_doc", "query_to_query"), "negatives_per_query": 1},
    "all": {"directions": ALL, "negatives_per_query": 1, "hardness": "hard_negatives"},
    "all, hardened": {"directions": ALL, "hardness": "in_batch_negatives"},
    "three": {"directions": ("query_to_doc", "query_to_query", "doc_to_doc"), "bank": 0},
    "widths": {"negatives_per_query": 1, "matryoshka": "dims and weights"},
}
GIST = {
    "plain": {"directions": ("query_to_doc",), "guide": ("absolute", 0.0)},
    "all": {
        "directions": ("query_to_doc", "query_to_query", "doc_to_doc"),
        "guide": ("relative", 0.1),
        "negatives_per_query": 1,
    },
}
CLIP = [(local, grad) for local in (False, True) for grad in (False, True)]


def leaves(case, rank, prefix=""):
    """This rank's rows of a case's columns."""
    return [x.chunk(dist.get_world_size())[rank].clone() for x in columns(case, prefix)]


def ranking(library, case, embeddings, name):
    options = case.options
    model = Encoder("model", case.dimensions)
    loss = getattr(library, name)(
        model,
        scale=1.0 / options.temperature,
        similarity_fct=util.cos_sim if options.normalize else util.dot_score,
        gather_across_devices=True,
        directions=options.directions,
        partition_mode=options.partition,
        hardness_mode=options.hardness,
        hardness_strength=options.hardness_strength,
    )
    if name.startswith("Cached"):
        return loss.calculate_loss([list(x.split(2)) for x in embeddings])
    if case["matryoshka"] is not None:
        dims, weights = options.matryoshka_dims, options.matryoshka_weights
        loss = library.MatryoshkaLoss(model, loss, dims, weights)
    return loss([{"model": x} for x in embeddings], None)


def gist(library, case, embeddings, rank):
    strategy, margin = case["guide"]
    loss = library.GISTEmbedLoss(
        Encoder("model"),
        Encoder("guide"),
        temperature=0.1,
        margin_strategy=strategy,
        margin=margin,
        contrast_anchors="query_to_query" in case["directions"],
        contrast_positives="doc_to_doc" in case["directions"],
        gather_across_devices=True,
    )
    guides = leaves(case, rank, "guide_")
    return loss([{"model": x, "guide": g} for x, g in zip(embeddings, guides, strict=True)], None)


class Tokens(torch.nn.Module):
    def forward(self, features, task=None):
        return features


def multi(library, embeddings, rank):
    """Of 3 tokens a text on one rank and 4 on the other."""
    features = [
        {"token_embeddings": x[:, : 3 + rank], "attention_mask": torch.ones(len(x), 3 + rank)}
        for x in embeddings
    ]
    loss = library.MultiVectorMultipleNegativesRankingLoss(Tokens(), gather_across_devices=True)
    return loss(features)


def clip(library, name, options, embeddings, rank, ranks):
    loss = getattr(library, name)(rank=rank, world_size=ranks, **options)
    return loss(*embeddings, 7.0, -2.0)


class ClipFormulas:
    """open_clip's losses where it is not installed; `rank` and `world_size` as there."""

    class ClipLoss:
        def __init__(self, local_loss, gather_with_grad, rank, world_size):
            self.local, self.grad, self.rank = local_loss, gather_with_grad, rank

        def __call__(self, images, texts, scale, bias):
            def everybody(x):
                parts = list(all_gather(x if self.grad else x.detach()))
                if not self.grad and not self.local:
                    parts[self.rank] = x
                return torch.cat(parts)

            everything = everybody(images), everybody(texts)
            mine = (images, texts) if self.local else everything
            first = self.rank * len(images) if self.local else 0
            labels = torch.arange(first, first + len(mine[0]))
            logits = scale * mine[0] @ everything[1].T, scale * mine[1] @ everything[0].T
            return sum(torch.nn.functional.cross_entropy(x, labels) for x in logits) / 2

    class SigLipLoss:
        def __init__(self, rank, world_size):
            self.rank = rank

        def __call__(self, images, texts, scale, bias):
            logits = scale * images @ torch.cat(list(all_gather(texts))).T + bias
            labels = -torch.ones_like(logits)
            labels.diagonal(self.rank * len(images)).fill_(1.0)
            return -torch.nn.functional.logsigmoid(labels * logits).sum() / len(images)


def run(loss, inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(inputs)
    value.backward()
    return [value.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in inputs)]


def results(rank, ranks):
    """{name: (the original's, ours)}, each the loss and the gradients of this rank's rows."""
    found = {}
    for name, drawn in RANKING.items():
        case = Case(queries=3 * ranks, drawn={"temperature": 0.3, **drawn}, seed=len(found))
        for kind in ("MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"):
            if kind.startswith("Cached") and case["matryoshka"] is not None:
                continue
            found[kind, name] = [
                run(lambda x, lib=lib, k=kind, c=case: ranking(lib, c, x, k), leaves(case, rank))
                for lib in (peer, ours)
            ]
    for name, drawn in GIST.items():
        case = Case(queries=3 * ranks, drawn=drawn, seed=len(found))
        found["GISTEmbedLoss", name] = [
            run(lambda x, lib=lib, c=case: gist(lib, c, x, rank), leaves(case, rank))
            for lib in (peer, ours)
        ]
    rng = np.random.default_rng(rank)
    # MaxSim's scores are float32 in both.
    tokens = [torch.from_numpy(rng.standard_normal((3, 4, 8), np.float32)) for _ in range(3)]
    found["MultiVectorMultipleNegativesRankingLoss", "plain"] = [
        run(lambda x, lib=lib: multi(lib, x, rank), tokens)
        for lib in (multi_vector_peer, multi_vector)
    ]
    features = [torch.from_numpy(rng.standard_normal((3, 5))) for _ in range(2)]
    originals = [ClipFormulas, *PEERS[1:]]
    calls = [("ClipLoss", {"local_loss": a, "gather_with_grad": b}) for a, b in CLIP]
    calls += [("SigLipLoss", {})]
    for name, options in calls:
        found[name, str(options)] = [
            run(lambda x, lib=lib, n=name, o=options: clip(lib, n, o, x, rank, ranks), features)
            for lib in (*originals, open_clip)
        ]
    return found


def refused(rank):
    x = [torch.ones(3 + rank, 2), torch.ones(3 + rank, 2)]
    loss = ours.MultipleNegativesRankingLoss(Encoder("model"), gather_across_devices=True)
    try:
        loss.compute_loss_from_embeddings(x, None)
    except ValueError as error:
        return str(error)
    return None


def main(rank, ranks, directory):
    torch.set_num_threads(1)
    importlib.import_module("simtile").set_num_threads(1)
    directory = Path(directory)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=300),
    )
    torch.save((results(rank, ranks), refused(rank)), directory / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
