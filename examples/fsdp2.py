"""PgM in a bare loop with FSDP2: fully_shard on the encoders, on the parts of PgM, on the model.

    torchrun --nproc-per-node 2 examples/fsdp2.py

Needs torch alone; reads nothing, writes nothing, takes seconds on CPUs. The losses do not depend on the number of
processes.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

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
    return text, audio, (2 * bits[0] + (bits[0] ^ bits[1]))[:, 0]


def main(steps=40):
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device("cuda", dist.get_node_local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    model = attach(Model(), {"text": "text", "audio": "audio"}, task_heads=4).to(device)
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    for part in (model.text, model.audio, *model.pgm["blocks"].values(), model.pgm["crossing"], model):
        fully_shard(part, mesh=mesh)
    groups = multi_rate_groups(model, 3e-3, {"audio": {"encoder": 2.0}}, default=1.0)
    optimizer = MultiRateAdamW(groups, max_norm=1.0)  # over all ranks
    for step in range(steps):
        rows = slice(dist.get_rank(), None, dist.get_world_size())
        text, audio, labels = (x[rows].to(device) for x in draw(64))
        loss = cross_entropy(model(text, audio), labels) + sum(collect_losses(model, labels).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dist.all_reduce(loss.detach_())
        if step % 10 == 9 and dist.get_rank() == 0:
            print(f"step {step + 1}: loss {loss.item() / dist.get_world_size():.4f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
