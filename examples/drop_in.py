"""PgM inside a model and a training loop of your own: the marked lines are all that changes.

    python examples/drop_in.py

Reads nothing, writes nothing, takes seconds on a CPU. Each of two made-up modalities carries one bit; the label is
four-fold: the bit of ``text`` (which text tells alone) and whether the two bits agree (which takes both).
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pgm_fast.nn import PgMBlock, mark_part
from pgm_fast.optim import multi_rate_groups


class Model(nn.Module):
    """Two encoders and a classifier, with a PgM block between them."""

    def __init__(self, dims: dict[str, int], width: int = 32, classes: int = 4):
        super().__init__()
        self.encoders = nn.ModuleDict({m: nn.Sequential(nn.Linear(d, width), nn.GELU()) for m, d in dims.items()})
        self.block = PgMBlock(dict.fromkeys(dims, width))  # added
        self.classifier = nn.Linear(width * len(dims), classes)
        for modality, encoder in self.encoders.items():  # added: which learning rate is whose
            mark_part(encoder, modality, "encoder")
        mark_part(self.classifier, "shared", "head")  # added

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        representations = {m: encoder(inputs[m]) for m, encoder in self.encoders.items()}
        representations, losses = self.block(representations)  # added
        return self.classifier(torch.cat(list(representations.values()), dim=-1)), losses


def draw(rows: int, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """``{modality: [rows, d]}`` and labels ``[rows]``."""
    text_bit, audio_bit = torch.randint(2, (2, rows), generator=generator)
    inputs = {"text": torch.randn(rows, 12, generator=generator), "audio": torch.randn(rows, 8, generator=generator)}
    inputs["text"][:, :3] += 3 * (2 * text_bit - 1).unsqueeze(1)
    inputs["audio"][:, :3] += 3 * (2 * audio_bit - 1).unsqueeze(1)
    return inputs, 2 * text_bit + (text_bit ^ audio_bit)


def main(steps: int) -> float:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = Model({"text": 12, "audio": 8})
    # was: torch.optim.AdamW(model.parameters(), lr=3e-3)
    rates = {"*": {"partitioner": 0.5}, "audio": {"encoder": 2.0}}
    optimizer = torch.optim.AdamW(multi_rate_groups(model, base_lr=3e-3, rates=rates, default=1.0))
    for step in range(steps):
        inputs, labels = draw(64, generator)
        logits, losses = model(inputs)
        loss = cross_entropy(logits, labels) + 0.1 * sum(losses.values())  # added: the block's losses
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    model.eval()
    with torch.no_grad():
        inputs, labels = draw(1000, generator)
        representations = {m: encoder(inputs[m]) for m, encoder in model.encoders.items()}
        shares = model.block.run(representations, shares=True).shares
        accuracy = (model(inputs)[0].argmax(dim=-1) == labels).float().mean().item()
    for modality, share in shares.items():
        uni, paired, shared, unused = share.mean(dim=0).tolist()
        print(
            f"{modality}: uni-modal share {uni + shared:.2f}, paired share {paired + shared:.2f}, unused {unused:.2f}"
        )
    print(f"accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=150)
    main(parser.parse_args().steps)
