"""Forms: the ways in which a linear layer may be quantized, with their costs. build/search.py chooses among them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """A way to quantize a linear layer.

    outliers: number of input channels computed in FP32. rotated: the input is rotated by a Hadamard matrix. per_token:
    the activations get a scale for each token, not one for the text. fp32: the layer is not quantized.
    cost: time of its nodes, in thousandths of a short text's time with 12 layers. Measured with 14 tokens, one thread,
    with VNNI and with AVX2 alone; see docs/quantization.md.
    """

    outliers: int = 0
    rotated: bool = False
    per_token: bool = False
    fp32: bool = False
    cost: float = 0


# Forms of each kind of layer, from the cheapest to the most exact.
FORMS = {
    "qkv": (Form(), Form(outliers=16, cost=3.5), Form(outliers=16, per_token=True, cost=7)),
    "attention_out": (Form(),),  # fold_smoothing smooths and rotates its input at no cost
    "feed_forward_in": (Form(), Form(outliers=16, cost=3.5)),
    "feed_forward_out": (Form(outliers=16), Form(outliers=16, rotated=True, cost=4)),
}
# Forms for layers where INT8 is not exact enough: the matrix product takes about 2.5 times as long.
IN_FP32 = {
    "qkv": Form(fp32=True, cost=30),
    "attention_out": Form(fp32=True, cost=10),
    "feed_forward_in": Form(fp32=True, cost=35),
    "feed_forward_out": Form(fp32=True, cost=35),
}
# Exponent a of the smoothing s = peak^a / largest weight^(1-a) for each kind: the share of the differences between
# channels that moves into the weights.
SMOOTHING = {"qkv": 0.7, "attention_out": 0.7, "feed_forward_in": 0.7, "feed_forward_out": 0.5}
# Exponents that --effort best tries.
SMOOTHINGS = (0.4, 0.5, 0.6, 0.7, 0.8)


def kind_of(layer: str) -> str:
    """Return the kind of a linear layer: `layers.0.qkv` -> `qkv`."""
    return layer.rpartition(".")[2]
