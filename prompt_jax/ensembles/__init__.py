"""Ensembles: several prompts of one frozen base that vote (Lester et al. 2021, section 6)."""
