"""SimCSE without labels: `python examples/simcse_unsupervised.py`.

A text is encoded twice. Dropout makes the two embeddings differ, and the loss asks the one to find
the other among the batch (Gao et al. 2021, "SimCSE", arXiv:2104.08821, eq. 4). Texts are the
docstrings of Python's standard library, the model is MiniLM from `pip install 'simtile[train]'`.

MiniLM has been trained on a billion pairs and finds the other view at once: the loss is near 0 from
the start, so this shows how it is done and gains little. Alignment (pairs near each other) and
uniformity (all texts spread out) are the two that the article explains its gains with; of both,
less is better.
"""

from __future__ import annotations

import argparse

import torch
from docstring_pairs import embed, load_model, read_triples, report

import simtile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = load_model()
    training, held_out = read_triples()
    texts = [text for triple in training for text in (triple.query, triple.document)]
    report("before", model, held_out)

    loss_of = simtile.nn.InfoNCE(temperature=0.05)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for step in range(1, arguments.steps + 1):
        batch = [texts[i] for i in torch.randint(len(texts), (arguments.batch,)).tolist()]
        # A text that was drawn twice is not its own negative.
        number = {text: i for i, text in enumerate(batch)}
        model.train()  # dropout
        views = embed(model, 2 * batch)
        ids = torch.tensor([number[text] for text in batch])
        loss = loss_of(views[: len(batch)], views[len(batch) :], query_ids=ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 10 == 0:
            print(f"step {step:3d}  loss {loss.item():.2e}", flush=True)
    model.eval()
    report("after", model, held_out)


if __name__ == "__main__":
    main()
