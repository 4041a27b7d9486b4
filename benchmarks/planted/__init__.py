"""Planted counterexamples: networks with an adversarial example that only deep searches reach."""
