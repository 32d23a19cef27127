"""Forms: the ways in which a linear layer may be quantized, with their costs. build/search.py chooses among them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """A way to quantize a linear layer.

    outliers: number of input channels computed in FP32. smoothed: the channels are divided by SMOOTHING's divisors.
    rotated: the input is rotated by a Hadamard matrix; needs smoothed. per_token: the activations get a scale for each
    token, not a constant one. headroom: the constant scale reaches so many times the largest value on the calibration
    texts; 0: the values of all but TOKENS_CLIPPED of their tokens. fp32: the layer is not quantized.
    cost: time of its nodes, in thousandths of a short text's time with 12 layers. Measured with 14 tokens, one thread,
    with VNNI and with AVX2 alone; see docs/quantization.md.
    """

    outliers: int = 0
    smoothed: bool = False
    rotated: bool = False
    per_token: bool = False
    headroom: float = 0
    fp32: bool = False
    cost: float = 0


# Headroom of inputs whose largest values differ from text to text, above all GELU's spikes: on texts unlike the
# calibration's they are often larger.
HEADROOM = 1.25

# Forms of each kind of layer, from the cheapest to the most exact.
FORMS = {
    "qkv": (
        Form(),
        Form(smoothed=True, cost=1.2),
        Form(smoothed=True, outliers=16, cost=6.5),
        Form(smoothed=True, outliers=16, per_token=True, cost=12),
    ),
    # fold_smoothing smooths and rotates its input at no cost
    "attention_out": (Form(headroom=HEADROOM), Form(per_token=True, cost=5)),
    "feed_forward_in": (
        Form(smoothed=True),
        Form(smoothed=True, outliers=16, cost=6.5),
        Form(smoothed=True, outliers=16, per_token=True, cost=12),
    ),
    "feed_forward_out": (
        Form(smoothed=True, outliers=16, headroom=HEADROOM),
        Form(smoothed=True, outliers=16, rotated=True, headroom=HEADROOM, cost=4.6),
        Form(smoothed=True, outliers=16, rotated=True, per_token=True, cost=11.5),
    ),
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
