"""simtile.nn.CachedLoss: the loss and gradients of the whole batch, a micro-batch in memory."""

import copy
import functools
import sys

import pytest
import torch
from cached_loss_cases import WIDTH, Bag, Tokens, Words, assert_as_uncached, gradients, mlp
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import simtile
from simtile import _micro_batches


@given(
    st.sampled_from([1, 2, 7, 32, 111]),
    st.sampled_from([1, 2, 5, 16, 200]),
    st.sampled_from([0, 1, 3]),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_is_the_loss_of_the_whole_batch(n, mini_batch_size, negatives, dtype, ids, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = [n, n + 2, *([n * negatives] if negatives else [])]
    inputs = [torch.randn(count, 5, generator=generator, dtype=dtype) for count in rows]
    arguments = {}
    if ids:
        arguments["query_ids"] = torch.randint(4, (n,), generator=generator)
        arguments["document_ids"] = torch.randint(4, (n + 2,), generator=generator)
    encoder, loss = mlp(seed=seed).to(dtype), simtile.nn.InfoNCE(0.2, learnable_temperature=True)
    plain, plain_loss = copy.deepcopy(encoder), copy.deepcopy(loss)
    cached = simtile.nn.CachedLoss(encoder, loss, mini_batch_size=mini_batch_size)
    ours = cached(*inputs, **arguments)
    ours.backward()
    embeddings = [plain(x) for x in inputs]
    if negatives:
        embeddings[2] = embeddings[2].reshape(n, negatives, -1)
    expected = plain_loss(*embeddings, **arguments)
    expected.backward()
    torch.testing.assert_close(ours, expected)
    scale = max(p.grad.abs().max() for p in plain.parameters()).item()
    roundoff = 1e-11 if dtype == torch.float64 else 2e-5
    for ours, theirs in ((encoder, plain), (loss, plain_loss)):
        torch.testing.assert_close(
            gradients(ours), gradients(theirs), rtol=10 * roundoff, atol=roundoff * (scale + 0.1)
        )


def token_batch(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(50, (rows, 6), generator=generator)
    lengths = torch.randint(1, 7, (rows, 1), generator=generator)
    mask = (torch.arange(6) < lengths).long()
    return {"input_ids": ids, "attention_mask": mask, "prompt_length": 0, "note": None}


def bag_batch(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(50, (sum(lengths),), generator=generator)
    return {"input_ids": ids, "offsets": torch.tensor([0, *lengths]).cumsum(0)[:-1]}


def test_dicts_of_tokens():
    assert_as_uncached(Tokens, [token_batch(8, 0), token_batch(8, 1)])


def test_strings():
    texts = ["a cat", "dogs", "thirty birds", "a fish swims"]
    answers = ["it sleeps", "they bark", "all sing", "in the sea"]
    assert_as_uncached(Words, [texts, answers], mini_batch_size=3)


@pytest.mark.parametrize("sparse", [False, True])
def test_static_embeddings(sparse):
    # As many tokens as rows in one of them, and rows without tokens.
    inputs = [bag_batch([3, 1, 0, 2, 4, 0], 0), bag_batch([1, 2, 0, 1, 1, 1], 1)]
    encoder = assert_as_uncached(lambda: Bag(sparse), inputs, mini_batch_size=2)
    assert encoder.table.weight.grad.is_sparse == sparse


@pytest.mark.slow  # imports sentence-transformers
def test_sentence_transformers_static_embedding():
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: i for i, word in enumerate(["[UNK]", *"abcdefgh"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    static = modules.StaticEmbedding(tokenizer, embedding_dim=7)
    queries, documents = ["a b", "c", "d e f", "g"], ["h a", "b b b", "c d", "e"]
    assert_as_uncached(lambda: static, [static.preprocess(queries), static.preprocess(documents)])


def test_columns_of_negatives():
    inputs = [torch.randn(4, 5) for _ in range(4)]
    encoder, loss_fn = mlp(), simtile.nn.InfoNCE(0.2)
    plain = copy.deepcopy(encoder)
    ours = simtile.nn.CachedLoss(encoder, loss_fn, mini_batch_size=3)(*inputs)
    q, d, x, y = map(plain, inputs)
    expected = loss_fn(q, d, torch.stack([x, y], dim=1))
    torch.testing.assert_close(ours, expected)
    ours.backward()
    expected.backward()
    torch.testing.assert_close(gradients(encoder), gradients(plain), rtol=1e-4, atol=1e-6)


def test_a_loss_of_other_shape_gets_the_embeddings_as_they_are():
    def loss(anchor, positive, negative):
        assert anchor.shape == positive.shape == negative.shape == (6, 7)
        return nn.functional.triplet_margin_loss(anchor, positive, negative)

    inputs = [torch.randn(6, 5) for _ in range(3)]
    encoder = mlp()
    plain = copy.deepcopy(encoder)
    simtile.nn.CachedLoss(encoder, loss, mini_batch_size=4)(*inputs).backward()
    loss(*map(plain, inputs)).backward()
    torch.testing.assert_close(gradients(encoder), gradients(plain), rtol=1e-4, atol=1e-6)


def test_encoders_of_their_own_and_shared():
    queries, documents, negatives = torch.randn(6, 5), torch.randn(6, 5), torch.randn(12, 5)
    pair = mlp(seed=0), mlp(seed=1)
    plain = copy.deepcopy(pair)
    loss = simtile.nn.CachedLoss(pair, mini_batch_size=4)
    assert len(list(loss.parameters())) == 8
    loss(queries, documents, negatives).backward()
    simtile.info_nce(
        plain[0](queries), plain[1](documents), plain[1](negatives).reshape(6, 2, 7)
    ).backward()
    for ours, theirs in zip(pair, plain, strict=True):
        torch.testing.assert_close(gradients(ours), gradients(theirs), rtol=1e-4, atol=1e-6)


class RecordingDropout(nn.Module):
    """Dropout that writes down its masks, and in another life applies given ones."""

    def __init__(self):
        super().__init__()
        self.masks = []
        self.given = None

    def forward(self, x):
        if self.given is not None:
            return x * self.given
        mask = (torch.rand_like(x) < 0.6) / 0.6
        self.masks.append(mask)
        return x * mask


def test_dropout_masks_are_replayed_and_two_views_differ():
    # SimCSE: the same input is passed twice. Against one big batch with the masks that were drawn.
    torch.manual_seed(3)
    first, dropout, head = nn.Linear(5, WIDTH), RecordingDropout(), nn.Linear(WIDTH, 7)
    encoder = nn.Sequential(first, dropout, head)
    plain = copy.deepcopy(encoder)
    x = torch.randn(7, 5)
    loss = simtile.nn.CachedLoss(encoder, mini_batch_size=3)(x, x)
    before = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), before)  # the replay draws nothing of its own
    masks = dropout.masks
    assert len(masks) == 12  # 3 micro-batches, 2 views, 2 passes
    drawn, replayed = masks[:6], masks[6:]
    for a, b in zip(drawn, replayed, strict=True):
        assert torch.equal(a, b)
    views = torch.cat(drawn[:3]), torch.cat(drawn[3:])
    assert not torch.equal(*views)
    embeddings = []
    for view in views:
        plain[1].given = view
        embeddings.append(plain(x))
    expected = simtile.info_nce(*embeddings)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(encoder), gradients(plain), rtol=1e-4, atol=1e-6)


def test_random_state_of_devices_is_restored(monkeypatch):
    class Module:
        state = 0

        def get_rng_state(self, device):
            return torch.tensor(self.state)

        def set_rng_state(self, state, device):
            self.state = int(state)

    module = Module()
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    device = torch.device("cuda", 1)
    module.state = 5
    state = _micro_batches.RandomState([device])
    module.state = 8
    with state.restored():
        assert module.state == 5
        module.state = 6
    assert module.state == 8
    weights = torch.empty(1, device="meta")
    assert _micro_batches.devices_in_use([weights, torch.empty(1)], unknown=False) == []


@pytest.mark.parametrize("known", [True, False])
def test_scaled_and_accumulated_gradients(known):
    x, y = torch.randn(7, 5), torch.randn(7, 5)
    encoder = mlp()
    plain = copy.deepcopy(encoder)
    function = encoder if known else (lambda batch: encoder(batch))
    cached = simtile.nn.CachedLoss(function, mini_batch_size=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for _ in range(2):
        scaler.scale(cached(x, y)).backward()
        scaler.scale(simtile.info_nce(plain(x), plain(y))).backward()
    torch.testing.assert_close(gradients(encoder), gradients(plain), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_replayed_and_leaves_no_cast_weights(dtype):
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x.dtype)
            return x

    encoder = mlp()
    encoder.insert(1, Spy())
    plain = copy.deepcopy(encoder)
    x, y = torch.randn(7, 5), torch.randn(7, 5)
    with torch.autocast("cpu", dtype=dtype):
        loss = simtile.nn.CachedLoss(encoder, mini_batch_size=3)(x, y)
        # Weights cast in the pass without a graph would give this no gradient.
        more = encoder(x).float().square().mean()
    (loss + more).backward()  # outside of autocast, as usual
    assert set(seen) == {dtype}
    with torch.autocast("cpu", dtype=dtype):
        a, b = plain(x), plain(y)
        expected = simtile.info_nce(a, b) + plain(x).float().square().mean()
    expected.backward()
    torch.testing.assert_close(loss + more, expected)
    scale = max(p.grad.abs().max() for p in plain.parameters()).item()
    torch.testing.assert_close(
        gradients(encoder), gradients(plain), rtol=0.05, atol=scale * torch.finfo(dtype).eps * 2
    )


def test_without_gradients_it_is_the_loss_alone():
    encoder = mlp(dropout=0.5).eval()
    x, y = torch.randn(7, 5), torch.randn(7, 5)
    cached = simtile.nn.CachedLoss(encoder, mini_batch_size=3)
    expected = simtile.info_nce(encoder(x), encoder(y))
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            loss = cached(x, y)
        assert not loss.requires_grad
        torch.testing.assert_close(loss, expected)


def test_modes_of_nested_modules_are_left_alone():
    encoder = nn.Sequential(nn.BatchNorm1d(5).eval(), mlp(dropout=0.5))
    cached = simtile.nn.CachedLoss(encoder, mini_batch_size=3)
    cached(torch.randn(7, 5), torch.randn(7, 5)).backward()
    assert not encoder[0].training
    assert encoder[1].training
    assert encoder[0].num_batches_tracked == 0
    cached.eval()
    assert not encoder[1].training


def test_frozen_parameters():
    encoder = mlp()
    encoder[0].requires_grad_(False)
    plain = copy.deepcopy(encoder)
    x, y = torch.randn(7, 5), torch.randn(7, 5)
    simtile.nn.CachedLoss(encoder, mini_batch_size=3)(x, y).backward()
    simtile.info_nce(plain(x), plain(y)).backward()
    assert encoder[0].weight.grad is None
    torch.testing.assert_close(gradients(encoder), gradients(plain), rtol=1e-4, atol=1e-6)


def test_a_frozen_encoder_is_not_run_again():
    calls = []

    class Frozen(nn.Linear):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    frozen = Frozen(5, 7).requires_grad_(False)
    cached = simtile.nn.CachedLoss((mlp(), frozen), mini_batch_size=4)
    cached(torch.randn(7, 5), torch.randn(7, 5)).backward()
    assert calls == [4, 3]
    temperature = simtile.nn.InfoNCE(learnable_temperature=True)
    loss = simtile.nn.CachedLoss(frozen, temperature)(torch.randn(7, 5), torch.randn(7, 5))
    loss.backward()
    assert temperature.log_temperature.grad != 0
    assert not simtile.nn.CachedLoss(frozen)(torch.randn(7, 5), torch.randn(7, 5)).requires_grad


def test_hooks_and_grad_see_one_backward():
    encoder = mlp()
    x, y = torch.randn(7, 5), torch.randn(7, 5)
    cached = simtile.nn.CachedLoss(encoder, mini_batch_size=2)
    calls = []
    for p in encoder.parameters():
        p.register_post_accumulate_grad_hook(lambda p: calls.append(p))
    cached(x, y).backward()
    assert len(calls) == 4
    grads = torch.autograd.grad(cached(x, y), list(encoder.parameters()))
    torch.testing.assert_close(grads, tuple(p.grad for p in encoder.parameters()))
    loss = cached(x, y)
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(
        tuple(3 * g for g in grads), tuple(p.grad for p in encoder.parameters())
    )
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_two_batches_before_their_backwards():
    encoder = mlp(dropout=0.3)
    cached = simtile.nn.CachedLoss(encoder, mini_batch_size=2)
    x, y = torch.randn(5, 5), torch.randn(5, 5)
    state = torch.get_rng_state()
    for loss in (cached(x, y), cached(y, x)):
        loss.backward()
    one_by_one = gradients(encoder)
    encoder.zero_grad()
    torch.set_rng_state(state)
    (cached(x, y) + cached(y, x)).backward()
    torch.testing.assert_close(gradients(encoder), one_by_one)


def test_methods_and_partials_of_modules_are_known():
    class Clip(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.text = nn.Linear(5, 7), nn.Linear(4, 7)

        def encode_image(self, x):
            return self.image(x)

        def encode_text(self, x, scale):
            return self.text(x) * scale

    clip = Clip()
    plain = copy.deepcopy(clip)
    encoders = clip.encode_image, functools.partial(clip.encode_text, scale=2.0)
    cached = simtile.nn.CachedLoss(encoders, mini_batch_size=4)
    assert len(list(cached.parameters())) == 4
    x, y = torch.randn(7, 5), torch.randn(7, 4)
    cached(x, y).backward()
    simtile.info_nce(plain.encode_image(x), plain.encode_text(y, 2.0)).backward()
    torch.testing.assert_close(gradients(clip), gradients(plain), rtol=1e-4, atol=1e-6)


def test_progress_bar(monkeypatch, capsys):
    pytest.importorskip("tqdm")
    cached = simtile.nn.CachedLoss(mlp(), mini_batch_size=2, show_progress_bar=True)
    cached(torch.randn(4, 5), torch.randn(4, 5)).backward()
    shown = capsys.readouterr().err
    assert "Embedding" in shown
    assert "Backward" in shown
    assert "4/4" in shown
    for name in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"show_progress_bar.*tqdm"):
        simtile.nn.CachedLoss(mlp(), show_progress_bar=True)


def test_errors_name_what_was_found():
    x = torch.randn(4, 5)
    encoder = mlp()
    cached = simtile.nn.CachedLoss(encoder, mini_batch_size=3)
    for make, error, message in (
        (lambda: simtile.nn.CachedLoss(encoder, mini_batch_size=0), ValueError, "mini_batch_size"),
        (lambda: simtile.nn.CachedLoss(encoder, mini_batch_size=2.0), TypeError, "expected an int"),
        (lambda: simtile.nn.CachedLoss((encoder, 3)), TypeError, "encoder: found 3"),
        (lambda: simtile.nn.CachedLoss(()), TypeError, "encoder: found None"),
        (lambda: simtile.nn.CachedLoss(encoder, 3), TypeError, "loss: found 3"),
        (lambda: cached(), ValueError, "inputs: found 0"),
        (lambda: cached(x, "text"), TypeError, r"inputs\[1\]: found a str"),
        (lambda: cached(x, 3), TypeError, r"inputs\[1\]: found int"),
        (lambda: cached(x, x[:0]), ValueError, r"inputs\[1\]: found no rows"),
        (lambda: cached(x, {"a": 1}), ValueError, "found no tensor"),
        (lambda: cached(x, {"a": x, "b": x[:3]}), ValueError, r"inputs\[1\]\['b'\].*expected 4"),
        (lambda: cached(x, {"cu_seq_lens_q": x}), ValueError, "cu_seq_lens_q"),
        (lambda: cached(x, x.clone().requires_grad_()), ValueError, "would be lost"),
        (lambda: cached(x, x, torch.randn(6, 5)), ValueError, r"inputs\[2\]: found 6 rows"),
        (lambda: cached(x, x, x, torch.randn(8, 5)), ValueError, r"inputs\[3\].*expected 4"),
        (lambda: simtile.nn.CachedLoss(lambda b: 3)(x, x), TypeError, "found int from the enc"),
        (lambda: simtile.nn.CachedLoss(lambda b: {"x": b})(x, x), ValueError, "sentence_embedding"),
        (lambda: simtile.nn.CachedLoss(lambda b: b[:2])(x, x), ValueError, r"\[2, 5\].*4 rows"),
        (
            lambda: simtile.nn.CachedLoss(encoder, simtile.nn.InfoNCE(reduction="none"))(x, x),
            ValueError,
            "expected one number",
        ),
    ):
        with pytest.raises(error, match=message):
            make()
