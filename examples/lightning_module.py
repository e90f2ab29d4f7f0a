"""PgM in a LightningModule: accumulation, bf16-mixed and resume are Lightning's, clipping is the optimizer's.

    python examples/lightning_module.py

Needs the extra "integrations"; takes seconds on a CPU.
"""

import tempfile

import torch
from lightning import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pgm_fast.nn import attach, collect_losses
from pgm_fast.optim import MultiRateAdamW, multi_rate_groups


class Model(nn.ModuleDict):
    def forward(self, text, audio):
        return self["head"](torch.cat([self["text"](text), self["audio"](audio)], dim=-1))


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        model = Model({"text": nn.Linear(12, 32), "audio": nn.Linear(8, 32), "head": nn.Linear(64, 4)})
        self.model = attach(model, {"text": "text", "audio": "audio"}, task_heads=4)

    def training_step(self, batch, _):
        *inputs, labels = batch
        task = nn.functional.cross_entropy(self.model(*inputs), labels)
        return task + sum(collect_losses(self.model, labels).values())

    def validation_step(self, batch, _):
        self.log("accuracy", (self.model(*batch[:2]).argmax(-1) == batch[2]).float().mean())

    def configure_optimizers(self):
        return MultiRateAdamW(multi_rate_groups(self.model, 3e-3, {"audio": {"encoder": 2.0}}, 1.0), max_norm=1.0)


def draw(rows):  # a bit in either; the class is the first, and whether they agree
    bits = torch.randint(2, (2, rows, 1))
    text, audio = (torch.randn(rows, d) + 3 * (2 * bit - 1) for d, bit in zip((12, 8), bits, strict=True))
    return DataLoader(TensorDataset(text, audio, (2 * bits[0] + (bits[0] ^ bits[1]))[:, 0]), batch_size=32)


def main(epochs=4):
    seed_everything(0)
    train, valid, out, saved = draw(1600), draw(320), tempfile.mkdtemp(), None
    for last in (epochs // 2, epochs):  # the second goes on where the first ended
        trainer = Trainer(max_epochs=last, accumulate_grad_batches=2, precision="bf16-mixed", default_root_dir=out)
        trainer.fit(Module(), train, valid, ckpt_path=saved)
        saved = trainer.checkpoint_callback.best_model_path
    return trainer.callback_metrics["accuracy"].item()


if __name__ == "__main__":
    print(f"accuracy {main():.3f}")
