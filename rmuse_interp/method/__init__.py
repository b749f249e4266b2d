"""R-MUSE and its rivals, each as one expression over edits, assembled from arrays."""
