"""Decisions made from the catalog: rewrite rules, the cost model, the scheduler, EXPLAIN's predictions."""
