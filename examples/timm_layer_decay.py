"""timm's layer-wise decay with MultiRateAdamW: groups by timm, or by pattern_groups, whose rates any optimizer reads.

    python examples/timm_layer_decay.py

Needs timm ("pip install pgm-fast[timm]"); downloads nothing, writes nothing, takes seconds on a CPU.
"""

import timm
import torch
from timm.optim import param_groups_layer_decay
from torch.nn.functional import cross_entropy

from pgm_fast.optim import MultiRateAdamW, pattern_groups

LR, WEIGHT_DECAY, LAYER_DECAY = 1e-3, 0.05, 0.75


def by_timm(model):
    """timm writes ``lr_scale``, which its own schedulers apply; everything else reads ``lr``."""
    groups = param_groups_layer_decay(model, WEIGHT_DECAY, layer_decay=LAYER_DECAY)
    return [{**group, "lr": LR * group.pop("lr_scale")} for group in groups]


def by_patterns(model):
    """The same but for the last norm, which timm counts to the last layer and this to the head."""
    return pattern_groups(model, LR, WEIGHT_DECAY, layer_decay=LAYER_DECAY)


def main(steps=20):
    losses = {}
    for groups_of in (by_timm, by_patterns):
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=4, num_classes=2)
        optimizer = MultiRateAdamW(groups_of(model), max_norm=1.0)
        for _ in range(steps):
            labels = torch.arange(32) % 2
            loss = cross_entropy(model(torch.randn(32, 3, 32, 32) + labels[:, None, None, None]), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[groups_of.__name__] = loss.item()
        rates = {f"{group['lr']:.2e}" for group in optimizer.param_groups}
        print(f"{groups_of.__name__}: {len(rates)} rates, {optimizer.launches_per_step} launches, loss {loss:.3f}")
    return losses


if __name__ == "__main__":
    main()
