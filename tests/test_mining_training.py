"""Mining again between epochs, and batches of different ids, in sentence-transformers' trainer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from static_model import pairs, static_model

import simtile
from simtile.integrations.sentence_transformers_mining import mine_hard_negatives
from simtile.integrations.sentence_transformers_sampler import distinct_ids
from simtile.integrations.transformers_remining import RemineHardNegatives


def mined(model, form="n-tuple", seed=0, **options):
    dataset = pairs(seed, 16, 10, 30)
    options = {"num_negatives": 2, "output_format": form, "verbose": False, **options}
    return mine_hard_negatives(dataset, model, **options)


def negatives(dataset):
    names = [name for name in dataset.column_names if name.startswith("negative")]
    return [tuple(row[name] for name in names) for row in dataset]


@pytest.mark.parametrize("form", ["n-tuple", "triplet"])
def test_the_same_model_finds_the_same(form):
    model = static_model()
    dataset = mined(model, form)
    remine = RemineHardNegatives(dataset)
    assert negatives(remine.dataset) == negatives(dataset)
    assert remine.mine(model) == 0
    assert negatives(remine.dataset) == negatives(dataset)


@pytest.mark.parametrize("form", ["n-tuple", "triplet"])
def test_another_model_finds_what_it_would(form):
    remine = RemineHardNegatives(mined(static_model(0), form))
    other = static_model(1)
    other.train()
    assert remine.mine(other) > 0
    assert other.training
    assert negatives(remine.dataset) == negatives(mined(other, form))
    shuffled = remine.dataset.shuffle(seed=0)
    assert sorted(negatives(shuffled)) == sorted(negatives(remine.dataset))
    assert list(remine.dataset["query"]) == list(mined(other, form)["query"])


def test_rows_that_find_too_few_keep_their_own():
    dataset = mined(static_model(0))
    remine = RemineHardNegatives(dataset, max_score=-2.0)
    assert remine.mine(static_model(1)) == 0
    assert negatives(remine.dataset) == negatives(dataset)
    remine = RemineHardNegatives(dataset, max_score=0.3, range_max=3)
    remine.mine(static_model(1))
    assert all(len(set(row)) == 2 for row in negatives(remine.dataset))


def test_chance_depends_on_seed_and_epoch():
    model = static_model()
    dataset = mined(model)
    found = []
    for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        remine = RemineHardNegatives(dataset, sampling="random", range_max=20, seed=seed)
        remine.mine(model, epoch)
        found.append(str(negatives(remine.dataset)))
    assert found[0] == found[1]
    assert len(set(found)) == 3


def train(tmp_path, model, dataset, epochs, **arguments):
    names = {"callbacks"}
    options = {name: arguments.pop(name) for name in names & arguments.keys()}
    seen = []

    class Loss(MultipleNegativesRankingLoss):
        def forward(self, features, labels):
            seen.append(len(features[0]["offsets"]))  # where each text begins
            return super().forward(features, labels)

    given = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=epochs,
        per_device_train_batch_size=4,
        learning_rate=0.5,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **arguments,
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=given, train_dataset=dataset, loss=Loss(model), **options
    )
    trainer.train()
    return seen


def test_training_sees_the_negatives_of_now(tmp_path):
    model = static_model()
    remine = RemineHardNegatives(mined(model))
    read = []
    inner = remine.dataset.format["format_kwargs"]["transform"]

    def watched(batch):
        read.append(inner(batch))
        return read[-1]

    epochs = []
    mine = remine.mine

    def noted(model, epoch=0):
        epochs.append((epoch, len(read)))
        return mine(model, epoch)

    remine.mine = noted
    train(tmp_path, model, remine.dataset.with_transform(watched), 2, callbacks=[remine])
    assert [epoch for epoch, _ in epochs] == [1]
    after = [x for batch in read[epochs[0][1] :] for x in batch["negative_1"]]
    assert sorted(after) == sorted(row["negative_1"] for row in remine.dataset)
    before = [x for batch in read[: epochs[0][1]] for x in batch["negative_1"]]
    assert sorted(before) != sorted(after)


def test_batches_of_different_ids_in_training(tmp_path):
    model = static_model()
    dataset = mined(model)
    ids = np.arange(len(dataset)) % 3
    sizes = train(tmp_path, model, dataset, 1, batch_sampler=distinct_ids(ids))
    assert sizes == [len(batch) for batch in simtile.DistinctIdsBatchSampler(ids, 4)]


def test_sampler_is_called_as_the_trainer_does():
    dataset = Dataset.from_dict({"query": list("aabbcc"), "answer": list("uvwxyz")})
    options = {
        "batch_size": 3,
        "drop_last": False,
        "valid_label_columns": ["label"],
        "generator": torch.Generator(),
        "seed": 5,
    }
    columns = "query", lambda given: given["query"], list("aabbcc")
    found = []
    for ids in columns:
        sampler = distinct_ids(ids)(dataset, **options)
        sampler.set_epoch(2)
        found.append(list(sampler))
        assert len(sampler) == len(found[-1]) == 2
        assert all(len({"aabbcc"[row] for row in batch}) == 3 for batch in found[-1])
    assert found[0] == found[1] == found[2]
    with pytest.raises(ValueError, match="ids: found 5, expected 6, one for each row"):
        distinct_ids(list("aabbc"))(dataset, **options)


def test_wrong_arguments():
    dataset = mined(static_model())
    with pytest.raises(ValueError, match="every: found 0, expected at least 1"):
        RemineHardNegatives(dataset, every=0)
    with pytest.raises(
        ValueError, match=r"dataset: found the columns \['query', 'answer'\], expected"
    ):
        RemineHardNegatives(pairs(0, 5, 3, 6))
    with pytest.raises(ValueError, match=r"dataset: found the columns .*'scores'\], expected"):
        RemineHardNegatives(mined(static_model(), output_scores=True))
    with pytest.raises(ValueError, match="k: found 2, expected at most 1"):
        RemineHardNegatives(dataset, range_max=1)
    remine = RemineHardNegatives(dataset, every=2, at_start=True)
    persisting = SimpleNamespace(dataloader_num_workers=1, dataloader_persistent_workers=True)
    with pytest.raises(ValueError, match="dataloader_persistent_workers: found True, expected"):
        remine.on_train_begin(persisting, None, None)


def test_every_second_epoch():
    model = static_model()
    remine = RemineHardNegatives(mined(model), every=2, at_start=True)
    epochs = []
    remine.mine = lambda model, epoch: epochs.append(epoch)
    for epoch in (0.0, 1.0, 2.0, 3.0, 4.0):
        remine.on_epoch_begin(None, SimpleNamespace(epoch=epoch), None, model=model)
    assert epochs == [0, 2, 4]
