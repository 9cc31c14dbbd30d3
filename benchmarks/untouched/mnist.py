"""In the style of PyTorch's MNIST example: keyword dictionaries, one function for each phase."""

import os
import time

import torch
import torch.nn.functional as F
from data import Pictures
from torch import nn, optim
from torch.optim.lr_scheduler import StepLR


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1)
        self.fc1 = nn.Linear(8 * 36, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        return F.log_softmax(self.fc1(torch.flatten(x, 1)), dim=1)


def train(model, device, train_loader, optimizer, epoch):
    model.train()
    begin = time.time()
    for batch_idx, (data, target) in enumerate(train_loader):
        data, target = data.to(device), target.to(device)
        optimizer.zero_grad()
        loss = F.nll_loss(model(data), target)
        loss.backward()
        optimizer.step()
        if batch_idx % 10 == 0:
            print(f"Train Epoch: {epoch} [{batch_idx * len(data)}/{len(train_loader.dataset)}]")
    print(f"epoch {epoch}: {time.time() - begin:.3f} s, {len(train_loader)} steps", flush=True)


def test(model, device, test_loader):
    model.eval()
    test_loss = 0
    with torch.no_grad():
        for data, target in test_loader:
            test_loss += F.nll_loss(model(data.to(device)), target.to(device)).item()
    print(f"Test set: Average loss: {test_loss / len(test_loader.dataset):.4f}")


def main():
    torch.manual_seed(1)
    device = torch.device("cpu")
    train_kwargs = {"batch_size": 16, "shuffle": True}
    test_kwargs = {"batch_size": 64}
    train_loader = torch.utils.data.DataLoader(Pictures(), **train_kwargs)
    test_loader = torch.utils.data.DataLoader(Pictures(64), **test_kwargs)
    model = Net().to(device)
    optimizer = optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.7)
    # A first look at what an untrained model reaches.
    test(model, device, test_loader)
    for epoch in range(1, int(os.environ.get("EPOCHS", 3)) + 1):
        train(model, device, train_loader, optimizer, epoch)
        test(model, device, test_loader)
        scheduler.step()
    torch.save(model.state_dict(), "mnist_cnn.pt")


if __name__ == "__main__":
    main()
