"""The operations that have a kernel for CPUs: one function each, which picks its implementation while it is traced.

The networks call these functions on ordinary [batch, height, width, channels] maps:

- `conv.conv`: convolution, dense, grouped or depthwise.
- `bias.add_bias`: adds one number to each channel.
- `norm.batch_norm_act`, `norm.affine_act`: batch normalisation, residual sum and activation, in training or inference.
- `pool.max_pool`, `pool.avg_pool`: 2x2 pooling.
- `layout.pointwise`: anything else that treats every position of a map alike, such as an activation.

`dispatch` says which implementation they pick. `README.md` beside this file explains the kernels and measures them.
"""
