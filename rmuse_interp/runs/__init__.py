"""Ask whole benchmarks, keep the answers on disk, and compute what is measured from them."""
