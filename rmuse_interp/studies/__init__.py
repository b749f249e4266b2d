"""What the analyses share: options, fits, variants of a plan, cells that resume, and what is written of them."""
