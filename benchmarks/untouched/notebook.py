#!/usr/bin/env python
"""A notebook that was exported to a script: no functions, and loaders in a dictionary."""

# In[1]:
import copy
import os
import time

import torch
from data import Pictures
from torch import nn, optim
from torch.optim import lr_scheduler

# In[2]:
image_datasets = {"train": Pictures(), "val": Pictures(64)}
dataloaders = {
    x: torch.utils.data.DataLoader(image_datasets[x], batch_size=16, shuffle=True)
    for x in ["val", "train"]
}
dataset_sizes = {x: len(image_datasets[x]) for x in ["train", "val"]}

# In[3]:
inputs, classes = next(iter(dataloaders["train"]))
print(inputs.shape)

# In[4]:
model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
criterion = nn.CrossEntropyLoss()
optimizer = optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
scheduler = lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)

# In[5]:
best_model_wts = copy.deepcopy(model.state_dict())
for epoch in range(int(os.environ.get("EPOCHS", 3))):
    for phase in ["train", "val"]:
        if phase == "train":
            model.train()
        else:
            model.eval()
        running_loss = 0.0
        begin = time.time()
        for inputs, labels in dataloaders[phase]:
            optimizer.zero_grad()
            with torch.set_grad_enabled(phase == "train"):
                loss = criterion(model(inputs), labels)
                if phase == "train":
                    loss.backward()
                    optimizer.step()
            running_loss += loss.item() * inputs.size(0)
        if phase == "train":
            scheduler.step()
            print(f"epoch {epoch}: {time.time() - begin:.3f} s, {len(dataloaders[phase])} steps")

# In[6]:
model.load_state_dict(best_model_wts)
