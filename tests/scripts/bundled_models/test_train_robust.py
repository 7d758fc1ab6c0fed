from __future__ import annotations

import torch

from scripts.bundled_models import train_clip, train_robust

UNNAMED = train_clip.UNNAMED


def test_train_robust__a_few_steps_leave_the_random_state():
    state = torch.get_rng_state()
    models = [train_robust.train(radius=1.0, steps=2, batch_size=8, attack_steps=2, seed=3) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    for first, second in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(first, second), "the seed decides"
