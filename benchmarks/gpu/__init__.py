"""The CUDA backend on a GPU, in one command. Nothing is downloaded, and no large file is written.

    python -m benchmarks.gpu                                  everything, a 9b shape in q4_k_m
    python -m benchmarks.gpu --phase decode,prefill           some phases; each takes a few minutes
    python -m benchmarks.gpu --phase kernels --recipe q4k --shape 2b --json kernels.json
    python -m benchmarks.gpu --phase load --file MODEL.apr
    TRITON_INTERPRET=1 python -m benchmarks.gpu --shape tiny  no GPU: does it run at all

Phases: conformance (the kit of `apr plugins check`), kernels (bytes and operations a second of
each), decode, prefill, agreement (the same greedy tokens as on the processor, and alone, batched
and in chunks), load (a file onto the device), transformers (the same shape in bfloat16, where it is
installed). Rows are printed as they come. What does not fit is a row that says so.

Needs apr-core, apr-backend-cuda, apr-qwen3-5, apr-quant-q4k; agreement also apr-demo and
apr-backend-cpu. Run from the root of the repository. CUDA_VISIBLE_DEVICES picks a GPU.

Weights are random and made on the device. Every loop runs a few times before it is measured:
kernels are compiled, tuned and captured by then. The clock of decode and prefill is the host's,
around `Model.forward`, which ends when its result is on the host. Kernels are timed on the device,
by torch's profiler where it works and by events elsewhere; the cache is emptied before each run.

Exit codes: 14 without a GPU that can be used, 1 if a row failed, tokens differ or a check of the
kit failed.
"""
