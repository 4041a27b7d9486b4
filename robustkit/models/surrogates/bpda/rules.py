"""The table of backward rules: torch function name -> differentiable approximation.

A rule gets a call and its true result, and returns a tensor of the result's shape whose gradient is
used in place of the true one (Athalye et al. 2018, section 4.1: f(x) forward, g(x) ≈ f(x)
backward). None leaves the result as it is.
"""

from __future__ import annotations

from robustkit.models.surrogates.bpda import boolean, rounding, squashing
from robustkit.models.surrogates.bpda.rule import Rule, names, step, straight


def under(text: str, rule: Rule) -> dict[str, Rule]:
    """Put one rule under several names."""
    return dict.fromkeys(names(text), rule)


# Names of torch functions and of Tensor methods, without underscores: `mode` strips those of
# operators (__and__) and of operations in place (round_).
RULES: dict[str, Rule] = {
    **under("round floor ceil trunc fix detach dequantize", straight),
    **under("quantize_per_tensor quantize_per_channel quantize_per_tensor_dynamic", straight),
    **under("fake_quantize_per_tensor_affine fake_quantize_per_channel_affine", straight),
    **under(
        "to type type_as int long short byte char bool half bfloat16 float double", rounding.cast
    ),
    **under("sign sgn", rounding.sign),
    **under("gt ge greater greater_equal", rounding.greater),
    **under("lt le less less_equal", rounding.less),
    **under("eq", rounding.equal),
    **under("ne not_equal", rounding.unequal),
    **under("clamp clip clamp_min clamp_max", rounding.clamp),
    **under("minimum maximum", rounding.one_sided),
    **under("hardtanh", rounding.hardtanh),
    **under("remainder fmod mod frac", rounding.periodic),
    **under("floor_divide floordiv div divide", rounding.ratio),
    **under("rshift bitwise_right_shift", boolean.power_of_two(-1)),
    **under("lshift bitwise_left_shift", boolean.power_of_two(1)),
    **under("and bitwise_and logical_and", boolean.both),
    **under("or bitwise_or logical_or", boolean.either),
    **under("xor bitwise_xor logical_xor", boolean.differ),
    **under("invert bitwise_not logical_not", boolean.negate),
    **under("heaviside", lambda call, out: None if (x := straight(call, out)) is None else step(x)),
    **under("where", boolean.where),
    **under("masked_fill", boolean.masked_fill),
    **under("view", boolean.bits),
    **under("bucketize", rounding.bucket),
    **under("searchsorted", rounding.place),
    **{name: squashing.tempered(name) for name in ("softmax", "log_softmax", "sigmoid", "tanh")},
    **{name: squashing.pooled(name) for name in ("max_pool1d", "max_pool2d", "max_pool3d")},
    **{name: squashing.pooled(name) for name in ("adaptive_max_pool1d", "adaptive_max_pool2d")},
    "hardsigmoid": lambda call, out: None if (x := straight(call, out)) is None else x / 6,
}
