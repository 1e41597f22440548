"""What was measured, to be measured again: `python -m benchmarks.NAME --help`.

loss           memory and time of the training objective, and of its dense form
lattice        time and memory of CTC through our lattice, and through optax
convert        import and export of published weights: time beside `cp`, memory
eight_billion  LLaDA-8B of random weights: convert, load, sample; memory, seconds a model call
sampler        decoding: time, calls and tokens, beside another sampler in the same process
buckets        training with and without length buckets: tokens per second that are no padding

They run in a checkout and are no part of the installed package.
"""
