"""Semi-supervised: each step takes labelled and unlabelled pictures."""

import torch
from data import Pictures
from torch import nn
from torch.utils.data import DataLoader

model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
labelled = DataLoader(Pictures(64), batch_size=8, shuffle=True)
unlabelled = DataLoader(Pictures(256), batch_size=32, shuffle=True)
for _ in range(3):
    for (pictures, labels), (others, _) in zip(labelled, unlabelled):
        loss = nn.functional.cross_entropy(model(pictures), labels) + model(others).var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
