"""`robustkit verify` and `robustkit supports`: a verifier of VNN-LIB properties."""
