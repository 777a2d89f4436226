"""Calibrated conversion: statistics, rounding with error feedback, sensitivities, widths."""
