"""4-bit NormalFloat with double-quantized scales (QLoRA, Dettmers et al. 2023)."""
