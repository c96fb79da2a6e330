"""The workloads of the paper as LangGraph apps: the same file for Halo and for its baselines."""
