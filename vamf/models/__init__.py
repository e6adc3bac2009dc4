"""Networks u(z, r, t) that support forward-mode differentiation, compilation and bfloat16."""
