"""SimCSE with hard negatives: `python examples/simcse_supervised.py`.

Each query has a document and a hard negative, and is compared with all documents and all negatives
of the batch (Gao et al. 2021, "SimCSE", arXiv:2104.08821, eq. 5). There the three are a sentence,
one that it entails and one that contradicts it. Here they are the first paragraph of a docstring of
Python's standard library, the rest of it, and the rest of another docstring of the same file: not a
contradiction, but a text that is easily taken for the right one.
"""

from __future__ import annotations

import argparse

import torch
from docstring_pairs import embed, load_model, read_triples, report

import simtile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = load_model()
    training, held_out = read_triples()
    report("before", model, held_out)

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    model.train()
    for step in range(1, arguments.steps + 1):
        batch = [training[i] for i in torch.randperm(len(training))[: arguments.batch].tolist()]
        queries = embed(model, [triple.query for triple in batch])
        # A negative may be the document of another query, and is one document more.
        number: dict[str, int] = {}
        texts = [triple.document for triple in batch] + [triple.negative for triple in batch]
        ids = torch.tensor([number.setdefault(text, len(number)) for text in texts])
        loss = simtile.info_nce(queries, embed(model, texts), temperature=0.05, document_ids=ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 10 == 0:
            print(f"step {step:3d}  loss {loss.item():.4f}", flush=True)
    model.eval()
    report("after", model, held_out)


if __name__ == "__main__":
    main()
