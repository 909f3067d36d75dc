"""Several prompts of one frozen base as one answerer (Lester et al. 2021, section 6): members, votes, comparisons."""
