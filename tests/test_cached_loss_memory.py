"""Memory of the cached losses: it does not grow with the batch."""

import torch
from torch import nn

import simtile


class SavedBytes:
    """The most bytes that autograd has kept at any time for later."""

    def __init__(self):
        self.now = self.most = 0

    def __enter__(self):
        outer = self

        class Kept:
            def __init__(self, tensor):
                self.tensor = tensor
                self.bytes = tensor.numel() * tensor.element_size()
                outer.now += self.bytes
                outer.most = max(outer.most, outer.now)

            def __del__(self):
                outer.now -= self.bytes

        self.hooks = torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


def saved_bytes(rows, mini_batch_size):
    encoder = nn.Sequential(nn.Linear(5, 256), nn.Tanh(), nn.Linear(256, 256), nn.Linear(256, 2))
    x, y = torch.randn(rows, 5), torch.randn(rows, 5)
    with SavedBytes() as saved:
        if mini_batch_size is None:
            simtile.info_nce(encoder(x), encoder(y)).backward()
        else:
            simtile.nn.CachedLoss(encoder, mini_batch_size=mini_batch_size)(x, y).backward()
    return saved.most


def test_memory_does_not_grow_with_the_batch():
    embeddings = 2 * 2 * 4  # bytes of a pair's two embeddings of 2 floats
    small, large = saved_bytes(64, 16), saved_bytes(512, 16)
    # Beyond the embeddings' gradients, which the loss keeps.
    assert large - small <= 2 * embeddings * (512 - 64)
    assert saved_bytes(512, None) > 10 * large  # what is counted does grow without caching


def live_bytes(rows, mini_batch_size):
    """The most bytes of tensors alive at once, by the allocator's own events."""
    encoder = nn.Sequential(nn.Linear(8, 256), nn.Tanh(), nn.Linear(256, 256), nn.Linear(256, 4))
    x, y = torch.randn(rows, 8), torch.randn(rows, 8)
    cached = simtile.nn.CachedLoss(encoder, mini_batch_size=mini_batch_size)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        cached(x, y).backward()
    now = most = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert most > 0
    return most


def test_peak_of_live_tensors_does_not_grow_with_the_batch():
    small, large = live_bytes(64, 16), live_bytes(1024, 16)
    random_states = 2 * (1024 - 64) // 16 * torch.get_rng_state().numel()
    embeddings = 2 * (1024 - 64) * 4 * 4
    # A few times over: out of the encoder, together, their gradients.
    assert large - small <= random_states + 6 * embeddings
