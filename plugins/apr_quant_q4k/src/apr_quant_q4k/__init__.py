"""The GGML block formats q4_k, q5_k, q6_k and q8_0 and their recipes for apr."""
