"""From a source model to a file: sources, architectures, tokenizers, the plan, the container."""
