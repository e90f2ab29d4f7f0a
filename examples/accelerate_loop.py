"""PgM in a loop with Accelerate: attach before prepare, collect from what prepare returns.

    python examples/accelerate_loop.py
    accelerate launch --cpu --num_processes 2 examples/accelerate_loop.py

Needs the extra "integrations"; reads nothing, writes nothing, takes seconds on a CPU.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from pgm_fast.nn import attach, collect_losses
from pgm_fast.optim import MultiRateAdamW, multi_rate_groups


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.text, self.audio = (nn.Sequential(nn.Linear(d, 32), nn.GELU()) for d in (12, 8))
        self.head = nn.Linear(64, 4)

    def forward(self, text, audio):
        return self.head(torch.cat([self.text(text), self.audio(audio)], dim=-1))


def draw(rows):  # a bit in either; the class is the first, and whether they agree
    bits = torch.randint(2, (2, rows, 1))
    text, audio = (torch.randn(rows, d) + 3 * (2 * bit - 1) for d, bit in zip((12, 8), bits, strict=True))
    return TensorDataset(text, audio, (2 * bits[0] + (bits[0] ^ bits[1]))[:, 0])


def main(epochs=3, mixed_precision="bf16"):
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision, gradient_accumulation_steps=2)
    model = attach(Model(), {"text": "text", "audio": "audio"}, task_heads=4)
    optimizer = MultiRateAdamW(multi_rate_groups(model, 3e-3, {"audio": {"encoder": 2.0}}, default=1.0))
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(draw(1600), 32, shuffle=True))
    for _ in range(epochs):
        for text, audio, labels in loader:
            with accelerator.accumulate(model):
                loss = cross_entropy(model(text, audio), labels) + sum(collect_losses(model, labels).values())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    text, audio, labels = draw(500).tensors
    with torch.no_grad():
        accuracy = (model.eval()(text, audio).argmax(-1) == labels).float().mean().item()
    accelerator.print(f"accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
