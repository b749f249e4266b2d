"""The paper's nouns, fitted from arrays, frozen and saved: subspaces, prototypes, angles, gates."""
