"""The compress room: tensors, the generator, codecs, fidelity.

One legend for dimensions, used in every docstring here:

    m       adapters in a cohort            n       weights of one adapter
    r       rank                            k       size of the latent z
    d_in    input size of a module          d_out   output size of a module
    c       size of the condition (the task vector)
    h       hidden width of the generator

A module's factors are `b` (d_out, r) and `a` (r, d_in); what PEFT adds to the base weight is
`scale * b @ a`, written ΔW. The factors are not unique: `b @ g` and `inv(g) @ a` give the same ΔW
for any invertible `g` (r, r), the gauge.

Which modules may import torch is in pyproject.toml (import-linter); nothing that decodes does.
"""
