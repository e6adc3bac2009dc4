"""Networks u(z, r, t) that survive forward-mode differentiation, compilation and bfloat16."""
