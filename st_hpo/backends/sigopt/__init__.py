"""The SigOpt backend."""
