"""Where plans run: layouts of model families, the native place, and (in `lens`, the only file that knows it) nnsight."""
