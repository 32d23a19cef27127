"""Parts that all architectures have: linear layers, norms, Q K V as one matrix, and the check of options."""

import math
from typing import Any

import numpy as np
import torch

from build import BuildError
from build.network import LINEARS, Floats, Linear, Norm


def check(config: Any, **supported: Any) -> None:
    """Raise BuildError for an option of a configuration that has another value than the supported one."""
    for option, value in supported.items():
        found = getattr(config, option, value)
        if found != value:
            raise BuildError(f"The model's {option} is {found!r}; supported is {value!r}.")


def array(tensor: torch.Tensor) -> Floats:
    """Return a tensor's values as float32, contiguous."""
    values: Floats = tensor.detach().to(torch.float32).contiguous().numpy()
    return values


def linear(module: Any) -> Linear:
    """Return a torch.nn.Linear; without a bias it gets one of zeros."""
    weight = array(module.weight.T)
    return Linear(weight, array(module.bias) if module.bias is not None else np.zeros(weight.shape[1], np.float32))


def norm(module: Any) -> Norm:
    """Return a torch.nn.LayerNorm; without a bias it gets one of zeros."""
    scale = array(module.weight)
    return Norm(scale, array(module.bias) if module.bias is not None else np.zeros_like(scale), module.eps)


def layer(
    index: int, qkv: Linear, out: Any, norm_of_attention: Any, feed_in: Any, feed_out: Any, norm_of_feed_forward: Any
) -> tuple[dict[str, Linear], dict[str, Norm]]:
    """Return the linear layers and norms of one transformer layer by their names."""
    name = f"layers.{index}"
    linears = dict(zip(LINEARS, (qkv, linear(out), linear(feed_in), linear(feed_out)), strict=True))
    norms = {"attention_norm": norm(norm_of_attention), "feed_forward_norm": norm(norm_of_feed_forward)}
    return {f"{name}.{kind}": item for kind, item in linears.items()}, {
        f"{name}.{kind}": n for kind, n in norms.items()
    }


def qkv(q: Any, k: Any, v: Any, heads: int) -> Linear:
    """Return the linear layers of Q, K and V as one, with 1/sqrt(head dimension) in Q's weights."""
    scale = 1 / math.sqrt(q.out_features // heads)
    weight = torch.cat([q.weight * scale, k.weight, v.weight])
    return Linear(array(weight.T), array(torch.cat([q.bias * scale, k.bias, v.bias])))
