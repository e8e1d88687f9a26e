"""What every test runs under: strict promotion, and no look at the machine's own settings."""

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
