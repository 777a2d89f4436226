"""The command line `tqn`: one module a verb, with its arguments and nothing else."""
