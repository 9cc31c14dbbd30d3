"""As much of torch as autotune asks for in a script without tensors; the real one takes a second.

Importing this puts it in torch's place, with no GPU: see `fake_gpu`.
"""

import sys
import types


def module(name, **attributes):
    """A module, imported already."""
    found = sys.modules[name] = types.ModuleType(name)
    vars(found).update(attributes)
    return found


class Tensor:
    """None is ever made."""


class IterableDataset:
    """The same."""


torch = module(
    "torch",
    __version__="fake",
    Tensor=Tensor,
    backends=types.SimpleNamespace(cudnn=types.SimpleNamespace(benchmark=False)),
    cuda=module("torch.cuda", is_initialized=lambda: False),
    get_num_threads=lambda: 1,
    is_grad_enabled=lambda: True,
    optim=types.SimpleNamespace(SGD=lambda parameters: None),
    save=lambda *_, **__: None,
    set_num_threads=lambda number: None,
    utils=types.SimpleNamespace(data=types.SimpleNamespace(IterableDataset=IterableDataset)),
    zeros=lambda *_, **__: None,
)
