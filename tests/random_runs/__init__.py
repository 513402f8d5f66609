"""Random workloads with faults on a real cluster: does what the bridge sent equal Dask's own accounting?

``python -m random_runs --runs 50 --seed 1`` with ``tests`` on the path. The plan of a run follows from its seed;
what the cluster makes of it does not.
"""
