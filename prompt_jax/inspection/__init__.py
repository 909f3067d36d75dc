"""What prompts look like: norms, neighbors in the vocabulary, similarity, projection, ablation and differences."""
