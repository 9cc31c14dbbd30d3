"""In the style of PyTorch's DCGAN example: two optimizers, and sample pictures now and then."""

import os
import time

import torch
from data import Pictures
from torch import nn

dataloader = torch.utils.data.DataLoader(Pictures(), batch_size=16, shuffle=True, num_workers=0)
netG = nn.Sequential(nn.Linear(16, 192), nn.Tanh())
netD = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
criterion = nn.BCEWithLogitsLoss()
fixed_noise = torch.randn(4, 16)
optimizerD = torch.optim.Adam(netD.parameters(), lr=2e-4, betas=(0.5, 0.999))
optimizerG = torch.optim.Adam(netG.parameters(), lr=2e-4, betas=(0.5, 0.999))
if __name__ == "__main__":
    for epoch in range(int(os.environ.get("EPOCHS", 3))):
        begin = time.time()
        for i, data in enumerate(dataloader, 0):
            netD.zero_grad()
            real = data[0]
            label = torch.ones(real.size(0), 1)
            errD_real = criterion(netD(real), label)
            errD_real.backward()
            fake = netG(torch.randn(real.size(0), 16))
            errD_fake = criterion(netD(fake.detach()), label * 0)
            errD_fake.backward()
            optimizerD.step()
            netG.zero_grad()
            errG = criterion(netD(fake), label)
            errG.backward()
            optimizerG.step()
            if i % 10 == 0:
                torch.save(netG(fixed_noise), f"fake_samples_epoch_{epoch:03d}.pt")
        print(f"epoch {epoch}: {time.time() - begin:.3f} s, {len(dataloader)} steps", flush=True)
        torch.save(netG.state_dict(), f"netG_epoch_{epoch}.pth")
