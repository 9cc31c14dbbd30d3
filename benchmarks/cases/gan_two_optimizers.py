"""A GAN: the discriminator's optimizer steps for every batch, the generator's for every second.

Follows: the n_critic of WGAN implementations.
Right: the discriminator takes an update for each batch of 32; both optimizers are seen.
"""

import torch
from torch.utils.data import TensorDataset

import autotune

EPOCHS = 2
N_CRITIC = 2


def main():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(3200, 64))
    maker = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
    critic = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    maker_optimizer = torch.optim.RMSprop(maker.parameters(), lr=1e-4)
    critic_optimizer = torch.optim.RMSprop(critic.parameters(), lr=1e-4)
    default = autotune.ThroughputConfig(batch_size=32)
    config = autotune.load_config("best_config.yaml", default=default)
    loader = config.dataloader(data, shuffle=True, drop_last=True)
    for _ in range(EPOCHS):
        for i, (real,) in enumerate(autotune.steps(loader)):
            fake = maker(torch.randn(len(real), 16))
            critic_optimizer.zero_grad()
            (critic(fake.detach()).mean() - critic(real).mean()).backward()
            critic_optimizer.step()
            if (i + 1) % N_CRITIC == 0:
                maker_optimizer.zero_grad()
                (-critic(fake).mean()).backward()
                maker_optimizer.step()


if __name__ == "__main__":
    main()
