"""What bounds are known for, in words: the message of a refusal and the page of the docs."""

from __future__ import annotations

# Kind: the operations, as modules, functions or methods; how they are bounded.
SUPPORTED = {
    "linear layers": (
        "`Linear`, `Conv1d`, `Conv2d`, `ConvTranspose2d`, `F.linear`, `F.conv2d`, "
        "`F.conv_transpose2d`, padding of every mode",
        "exact",
    ),
    "batch normalization": (
        "`BatchNorm1d`, `BatchNorm2d`, `F.batch_norm`, with running statistics",
        "exact",
    ),
    "standardization": (
        "`LayerNorm`, `GroupNorm`, `InstanceNorm2d`, `F.layer_norm`, `F.group_norm`",
        "intervals exact but for the mean; planes of (x − mean) · 1 / sqrt(variance)",
    ),
    "pooling": (
        "`MaxPool2d`, `AvgPool2d`, `AdaptiveAvgPool2d`, and as functions; `sum` and `mean` over "
        "axes other than the first",
        "averages and sums exact; a maximum by one input below and a constant above",
    ),
    "reshapes": (
        "`flatten`, `view`, `reshape`, `unflatten`, `squeeze`, `unsqueeze`, `permute`, "
        "`transpose`, slices, `chunk`, `split`, `unbind`, `cat` (with constants too), `clone`, "
        "`contiguous`",
        "exact",
    ),
    "padding and upsampling": (
        "`F.pad`, `ZeroPad2d`, `ReflectionPad2d`, `ReplicationPad2d`, `Upsample`, "
        "`F.interpolate` (nearest, bilinear, whole factors)",
        "exact",
    ),
    "sums": ("`a + b`, `a - b`, with broadcasting; constants, `-a`, `a / constant`", "exact"),
    "products": (
        "`a * b` with broadcasting, `a @ b`, `torch.matmul`, `torch.bmm`, `a ** 2`, `square`",
        "intervals exact; the mean of the planes of McCormick",
    ),
    "attention": (
        "`F.scaled_dot_product_attention`, `MultiheadAttention(batch_first=True)`, without mask",
        "products and softmax; results stay between the least and the greatest value",
    ),
    "softmax": (
        "`softmax`, `log_softmax`, as modules and functions",
        "as last operation exact: the margins of the logits; else intervals exact, tangent planes",
    ),
    "piecewise linear": (
        "`relu`, `leaky_relu`, `relu6`, `hardtanh`, `clamp` by numbers",
        "the triangle; slopes of ReLUs optimized by alpha-CROWN",
    ),
    "smooth activations": (
        "`sigmoid`, `tanh`, `silu`, `gelu` (exact form)",
        "tangents and chords of the hull; slopes optimized by alpha-CROWN",
    ),
    "convex activations": ("`elu` (alpha 1), `softplus` (beta 1)", "tangent and chord"),
    "casts": (
        "`to`, `float`, `double`, `type_as` that keep float32 or float64",
        "exact; less precision is refused",
    ),
    "dropout": ("`Dropout`, stochastic depth, in evaluation mode", "the identity"),
}
