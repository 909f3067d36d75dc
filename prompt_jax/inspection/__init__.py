"""Inspection of prompts: norms, neighbors in the vocabulary, similarity, projection, ablation and differences."""
