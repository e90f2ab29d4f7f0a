"""PgM in a Hugging Face model under Trainer: attach, the losses, the optimizer; the model's code stays as it is.

    python examples/hf_trainer.py

Needs the extra "integrations"; reads nothing, writes nothing, takes seconds on a CPU.
"""

import torch
from torch import nn
from transformers import BertConfig, BertModel, Trainer, TrainingArguments, ViTConfig, ViTModel

from pgm_fast.nn import attach, collect_losses
from pgm_fast.optim import MultiRateAdamW, multi_rate_groups

SIZE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


class LateFusion(nn.Module):
    def __init__(self, text, image):
        super().__init__()
        self.text, self.image, self.classifier = text, image, nn.Linear(64, 4)

    def forward(self, input_ids, attention_mask, pixel_values, labels):
        words = self.text(input_ids, attention_mask).last_hidden_state * attention_mask.unsqueeze(-1)
        both = [words.sum(1) / attention_mask.sum(1, keepdim=True), self.image(pixel_values).pooler_output]
        logits = self.classifier(torch.cat(both, dim=-1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class PgMTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        loss = loss + sum(collect_losses(model, inputs["labels"]).values())
        return (loss, outputs) if return_outputs else loss


def draw(rows):  # a bit in the words, one in the picture; the class is the first, and whether they agree
    word, light = torch.randint(2, (2, rows, 1))
    ids, mask = torch.randint(2, 16, (rows, 6)) // 2 * 2 + word, (torch.arange(6) < 4).long().expand(rows, 6)
    pixels, labels = torch.randn(rows, 1, 8, 8) + 2 * light[:, None, None], (2 * word + (word ^ light))[:, 0]
    rows = zip(ids, mask, pixels, labels, strict=True)
    return [{"input_ids": i, "attention_mask": m, "pixel_values": p, "labels": y} for i, m, p, y in rows]


def main(steps=100):
    torch.manual_seed(0)
    text, image = BertConfig(vocab_size=16, **SIZE), ViTConfig(image_size=8, patch_size=4, num_channels=1, **SIZE)
    places = {"text": ("text", "last_hidden_state"), "image": ("image", "pooler_output")}
    model = attach(LateFusion(BertModel(text), ViTModel(image)), places, masks={"text": "attention_mask"}, task_heads=4)
    optimizer = MultiRateAdamW(multi_rate_groups(model, 2e-3, {"*": {"partitioner": 2.0}}, default=1.0))
    plan = TrainingArguments(".", max_steps=steps, per_device_train_batch_size=32, save_strategy="no", report_to="none")
    trainer = PgMTrainer(model, plan, train_dataset=draw(2000), optimizers=(optimizer, None))
    trainer.train()
    told = trainer.predict(draw(500))
    return (told.predictions.argmax(-1) == told.label_ids).mean().item()


if __name__ == "__main__":
    print(f"accuracy {main():.3f}")
