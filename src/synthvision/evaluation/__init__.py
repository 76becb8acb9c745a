"""From predictions to a report that a sceptic can check: metrics, intervals, subgroups, probes, ledger, figures."""
