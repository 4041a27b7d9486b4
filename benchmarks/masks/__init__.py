"""Published masks: small trained defenses whose robustness was overstated, and who is fooled."""
