"""Networks with interleaved grouped pointwise convolutions trained from random weights, beside the dense one."""
