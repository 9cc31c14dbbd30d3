"""In the style of Accelerate's nlp_example.py: everything is prepared in one call."""

import os
import time

import torch
from accelerate import Accelerator
from data import Pictures
from torch import nn
from torch.utils.data import DataLoader


def main():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    train_dataloader = DataLoader(Pictures(), shuffle=True, batch_size=8)
    eval_dataloader = DataLoader(Pictures(64), batch_size=16)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    num_epochs = int(os.environ.get("EPOCHS", 3))
    lr_scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    model, optimizer, train_dataloader, eval_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, eval_dataloader, lr_scheduler
    )
    for epoch in range(num_epochs):
        model.train()
        begin = time.time()
        for inputs, labels in train_dataloader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(inputs), labels)
                accelerator.backward(loss)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
        steps = len(train_dataloader)
        accelerator.print(f"epoch {epoch}: {time.time() - begin:.3f} s, {steps} steps")
        model.eval()
        for inputs, labels in eval_dataloader:
            with torch.no_grad():
                accelerator.gather_for_metrics((model(inputs).argmax(-1), labels))


if __name__ == "__main__":
    main()
