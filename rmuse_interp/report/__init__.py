"""What people look at: tables and figures drawn from a run's scores, without a model at hand."""
