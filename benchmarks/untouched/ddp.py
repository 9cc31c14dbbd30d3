"""In the style of PyTorch's DDP tutorial: a Trainer class of its own, started by torchrun."""

import os
import time

import torch
import torch.distributed as dist
from data import Pictures
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler


class Trainer:
    def __init__(self, model, train_data, optimizer):
        self.model, self.train_data, self.optimizer = DDP(model), train_data, optimizer

    def _run_epoch(self, epoch):
        self.train_data.sampler.set_epoch(epoch)
        begin = time.time()
        for source, targets in self.train_data:
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(source), targets)
            loss.backward()
            self.optimizer.step()
        if dist.get_rank() == 0:
            steps = len(self.train_data)
            print(f"epoch {epoch}: {time.time() - begin:.3f} s, {steps} steps", flush=True)

    def train(self, max_epochs):
        for epoch in range(max_epochs):
            self._run_epoch(epoch)


def prepare_dataloader(dataset, batch_size):
    return DataLoader(dataset, batch_size=batch_size, sampler=DistributedSampler(dataset))


def main():
    dist.init_process_group("gloo")
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    trainer = Trainer(model, prepare_dataloader(Pictures(), 16), optimizer)
    trainer.train(int(os.environ.get("EPOCHS", 3)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
