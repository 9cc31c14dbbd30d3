"""The memory of one layer: pooled summaries of past chunks, read by attention.

Shapes: B batch, T time, D width, M slots of the finest level, S slots of the top level,
R tokens not yet written (R < chunk length), C chunks.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mm_rec.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Memory:
    """What one layer remembers, oldest first.

    The slots are a first-in first-out queue: a write appends at the end and drops the oldest at
    the front. Attention does not see the order of its keys, so this equals a ring with a write
    position, and needs none.

    Attributes:
        slots_bmd: The finest level.
        top_bsd: The top level, which is read: `slots_bmd` pooled, kept so that no token but a
            chunk's last one needs to touch the slots.
        pending_brd: Hidden states of the chunk that is not yet complete.
    """

    slots_bmd: Tensor
    top_bsd: Tensor
    pending_brd: Tensor

    def detach(self) -> Memory:
        """Return the same memory without its history of gradients."""
        return Memory(
            slots_bmd=self.slots_bmd.detach(),
            top_bsd=self.top_bsd.detach(),
            pending_brd=self.pending_brd.detach(),
        )


def pool(slots_bmd: Tensor, num_slots: int) -> Tensor:
    """Return the level with `num_slots` slots, [B, num_slots, D]: means of neighbours."""
    return torch.unflatten(slots_bmd, 1, (num_slots, -1)).mean(dim=2)


class MemoryAttention(nn.Module):
    """Multi-head attention over the memory's top level; the slots are both keys and values.

    A chunk of `chunk_len` tokens fills `slots_per_chunk` finest slots (each the mean of a few
    tokens), which is exactly one slot of the top level (the mean over the chunk). Tokens of chunk
    c read the memory as it is after the chunks before c, never their own: a chunk is written
    after it has been read.

    Source: MM-Rec (obarlik/mm-rec) for the levels and the query. In the original one mean vector
    overwrote every slot and no gradient reached it; here the initial slots are learned.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Make the projections and the learned initial slots."""
        super().__init__()
        self.config = config
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)
        # Learned at the level that is read: finer initial slots would all get the gradient of
        # the slot that they are pooled into.
        self.initial_sd = nn.Parameter(torch.empty(config.memory_levels[-1], config.width))
        nn.init.normal_(self.initial_sd, std=0.02)

    def initial_memory(self, batch_size: int) -> Memory:
        """Return the memory before the first token."""
        slots_1md = self.initial_sd.repeat_interleave(self.config.slots_per_chunk, dim=0)[None]
        return Memory(
            slots_bmd=slots_1md.expand(batch_size, -1, -1),
            top_bsd=pool(slots_1md, self.config.memory_levels[-1]).expand(batch_size, -1, -1),
            pending_brd=slots_1md.new_empty(batch_size, 0, self.config.width),
        )

    def levels(self, memory: Memory) -> tuple[Tensor, ...]:
        """Return every level of the memory, finest first, [B, slots of the level, D] each."""
        finer = [pool(memory.slots_bmd, num) for num in self.config.memory_levels[:-1]]
        return (*finer, memory.top_bsd)

    def forward(self, h_btd: Tensor, q_btd: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Return what each token read, [B, T, D], and the memory after these tokens."""
        seen_brd = torch.cat((memory.pending_brd, h_btd), dim=1)
        num_chunks = seen_brd.shape[1] // self.config.chunk_len
        if not num_chunks:
            # The usual case when a text is generated token by token: all read the same slots.
            keys_bsd, visible_ts = memory.top_bsd, None
            after = dataclasses.replace(memory, pending_brd=seen_brd)
        else:
            new_bmd = self._summaries(seen_brd, num_chunks)
            keys_bsd = torch.cat((memory.top_bsd, pool(new_bmd, num_chunks)), dim=1)
            visible_ts = self._visible(memory.pending_brd.shape[1], seen_brd, keys_bsd)
            num_slots, num_new = memory.slots_bmd.shape[1], new_bmd.shape[1]
            kept = (memory.slots_bmd[:, num_new:], new_bmd[:, -num_slots:])
            after = Memory(
                slots_bmd=torch.cat(kept, dim=1),
                top_bsd=keys_bsd[:, num_chunks:],
                # A copy, so that the state does not keep the states of all T.
                pending_brd=seen_brd[:, num_chunks * self.config.chunk_len :].clone(),
            )
        read_btd = self._attend(self.query(h_btd) + 0.5 * q_btd, keys_bsd, visible_ts)
        return self.output(read_btd), after

    def _summaries(self, seen_brd: Tensor, num_chunks: int) -> Tensor:
        """Return the finest slots of the complete chunks, of which there is at least one."""
        whole_btd = seen_brd[:, : num_chunks * self.config.chunk_len]
        return pool(whole_btd, num_chunks * self.config.slots_per_chunk)

    def _visible(self, num_pending: int, seen_brd: Tensor, keys_bsd: Tensor) -> Tensor:
        """Return which key each token may read, [T, keys].

        Chunk c may read the top slots c ... c + S - 1 of the old ones followed by the new ones:
        c chunks were appended before it and the c oldest slots dropped.
        """
        device = seen_brd.device
        token_t = torch.arange(num_pending, seen_brd.shape[1], device=device)
        chunk_t = token_t // self.config.chunk_len
        age_ts = torch.arange(keys_bsd.shape[1], device=device) - chunk_t[:, None]
        return (age_ts >= 0) & (age_ts < self.config.memory_levels[-1])

    def _attend(self, q_btd: Tensor, keys_bsd: Tensor, visible_ts: Tensor | None) -> Tensor:
        heads = (self.config.num_heads, -1)
        slots = torch.unflatten(keys_bsd, 2, heads).transpose(1, 2)
        queries = torch.unflatten(q_btd, 2, heads).transpose(1, 2)
        read = functional.scaled_dot_product_attention(queries, slots, slots, attn_mask=visible_ts)
        return read.transpose(1, 2).flatten(2)
