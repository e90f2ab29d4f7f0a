"""The losses alone, in a two-tower model of your own: symmetric InfoNCE, and one-way transfer of what the other knows.

    python examples/losses_alone.py

Needs torch alone; reads nothing, writes nothing, takes seconds on a CPU.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from pgm_fast.ops import duc_loss, effective_dimensions, info_nce

CLASSES = 4


def draw(rows):  # two views of one hidden vector, whose first entry says most about the class
    hidden = torch.randn(rows, 6)
    labels = torch.bucketize(hidden[:, 0].contiguous(), torch.tensor([-0.67, 0.0, 0.67]))
    maps = torch.randn(2, 6, 20, generator=torch.Generator().manual_seed(0))
    return *(hidden @ maps[k] + 0.3 * torch.randn(rows, 20) for k in range(2)), labels


def main(steps=200):
    torch.manual_seed(0)
    towers = nn.ModuleList(nn.Sequential(nn.Linear(20, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(2))
    heads = nn.ModuleList(nn.Linear(16, CLASSES) for _ in range(2))
    optimizer = torch.optim.AdamW([*towers.parameters(), *heads.parameters()], lr=3e-3)
    useful = None
    for step in range(steps):
        *views, labels = draw(128)
        a, b = (tower(x) for tower, x in zip(towers, views, strict=True))
        loss = sum(cross_entropy(head(f), labels) for head, f in zip(heads, (a, b), strict=True))
        loss = loss + info_nce(a, b, temperature=0.1)  # no matrix of products is kept for the backward pass
        if step == steps // 2:
            useful = effective_dimensions(b.detach(), labels, CLASSES)[1]
        if useful is not None:
            loss = loss + 0.1 * duc_loss(student=a, teacher=b, dims=useful, temperature=10.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    *views, _ = draw(200)
    with torch.no_grad():
        a, b = (normalize(tower(x), dim=-1) for tower, x in zip(towers, views, strict=True))
    return ((a @ b.T).argmax(dim=1) == torch.arange(200)).float().mean().item()


if __name__ == "__main__":
    print(f"R@1 of 200: {main():.3f}")
