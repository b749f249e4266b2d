"""What the analyses share: options, fits, variants of a plan, resumable cells, and records."""
