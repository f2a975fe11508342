"""Who does the work of `compress`: this process (`solo`), or several by torch.distributed (`leader`, `worker`).

    leader (rank 0)   plans, posts orders, takes part in them, records what comes back
    workers           read the registry, encode what they take from an order, train where they are trainers

Every adapter is encoded by `jobs`, whoever does it, with one thread of BLAS, from what the order says and the
registry holds. So codes are the same bytes whatever the number of processes.
"""
