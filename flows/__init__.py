"""Order and parameters of the pipeline; no arithmetic."""
